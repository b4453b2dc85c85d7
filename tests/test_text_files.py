import os

import pytest

from pipeline.text_files import csv_rows, read_text


def test_any_line_end_and_a_byte_order_mark(tmp_path):
    (tmp_path / "t").write_bytes("\ufeffa\r\nb\rc\nd\u2028\x85e".encode())
    assert read_text(tmp_path / "t") == "a\nb\nc\nd\u2028\x85e"


def test_what_would_block_or_fill_the_memory_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="a FIFO, not a regular file"):
        read_text(tmp_path / "fifo")
    with pytest.raises(ValueError, match="a device, not a regular file"):
        read_text("/dev/zero")
    with pytest.raises(ValueError, match="a folder, not a regular file"):
        read_text(tmp_path)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(ValueError, match="more than"):
        read_text(tmp_path / "sparse")
    (tmp_path / "five").write_bytes(b"12345")
    assert read_text(tmp_path / "five", max_bytes=5) == "12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_text(tmp_path / "five", max_bytes=4)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "latin")


def test_a_file_that_has_nothing_to_read_yet_is_refused(tmp_path, monkeypatch):
    """As some of /proc are, which call themselves regular."""
    reading, writing = os.pipe()
    monkeypatch.setattr("pipeline.text_files.stat.S_ISREG", lambda mode: True)
    os.set_blocking(reading, False)
    try:
        with pytest.raises(ValueError, match="cannot be read now"):
            read_text(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)


def test_rows_of_csv():
    assert csv_rows(' a ,b\n\n1,"x\ny"\n2,\n') == [["a", "b"], ["1", "x\ny"], ["2", ""]]
    assert csv_rows("") == []
    with pytest.raises(ValueError, match="line 4 has 3 fields and the header 2"):
        csv_rows('a,b\n1,"x\ny"\n2,,\n')
