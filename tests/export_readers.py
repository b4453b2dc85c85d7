"""Readers of exports by the documented layout of each format, with h5py, pyarrow, json and numpy alone.

Each gives a dictionary an episode: video_id, split where the format has it, observations, actions, rewards, start_s and
end_s, and what only that format has.
"""

import json

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq


def read_npy(folder, key="r3d_18"):
    index = pd.read_csv(folder / "videos.csv", keep_default_na=False)
    episodes = []
    for row in index.itertuples():
        arrays = {
            name: np.load(folder / f"{row.name}_{suffix}.npy")
            for name, suffix in (("observations", key), ("start_s", "timestamps_ms"), ("end_s", "ends_ms"))
        }
        arrays["start_s"], arrays["end_s"] = arrays["start_s"] / 1000, arrays["end_s"] / 1000
        assert len(arrays["observations"]) == row.clips
        fps = np.load(folder / f"{row.name}_fps.npy")
        episodes.append({"video_id": row.video_id, "split": row.split, "fps": float(fps), **arrays})
    return episodes


def read_parquet(path):
    frame = pq.read_table(path).to_pandas()
    episodes = []
    for video_id, rows in frame.groupby("video_id", sort=False):
        actions = rows[[name for name in ("pressure", "dwell") if name in rows]]
        episodes.append(
            {
                "video_id": video_id,
                "split": rows["split"].iloc[0],
                "observations": np.stack(rows["embedding"].to_list()),
                "actions": actions.to_numpy(),
                "rewards": rows["reward_usd"].to_numpy() if "reward_usd" in rows else None,
                "start_s": rows["start_s"].to_numpy(),
                "end_s": rows["end_s"].to_numpy(),
            }
        )
    return episodes


def read_lerobot(folder):
    info = json.loads((folder / "meta/info.json").read_text())
    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    assert (tasks.index.name, list(tasks)) == ("task", ["task_index"])
    of_episode = pd.concat(map(pd.read_parquet, sorted((folder / "meta/episodes").glob("*/*.parquet"))))
    assert list(of_episode["episode_index"]) == list(range(info["total_episodes"]))
    episodes = []
    for row in of_episode.to_dict("records"):
        path = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        table = pq.read_table(folder / path, filters=[("episode_index", "==", row["episode_index"])])
        assert set(table.column_names) == set(info["features"])
        columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
        assert len(table) == row["length"] == row["dataset_to_index"] - row["dataset_from_index"]
        assert list(columns["index"]) == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        assert list(columns["frame_index"]) == list(range(len(table)))
        np.testing.assert_allclose(columns["timestamp"], np.arange(len(table)) / info["fps"], rtol=1e-6)
        assert list(columns["next.done"]) == [False] * (len(table) - 1) + [True]
        texts = [tasks.index[tasks["task_index"] == number][0] for number in columns["task_index"]]
        assert set(texts) == set(row["tasks"])
        split = [
            name for name, span in info["splits"].items() if row["episode_index"] in range(*map(int, span.split(":")))
        ]
        episodes.append(
            {
                "video_id": row["video_id"],
                "split": split[0],
                "observations": columns["observation.embedding"],
                "actions": columns.get("action"),
                "rewards": columns.get("next.reward"),
                "start_s": columns["clip.start_s"],
                "end_s": columns["clip.end_s"],
                "texts": texts,
            }
        )
    assert sum(len(one["observations"]) for one in episodes) == info["total_frames"]
    return episodes


def read_minari(folder):
    metadata = json.loads((folder / "data/metadata.json").read_text())
    assert metadata["dataset_id"] == folder.name
    episodes = []
    with h5py.File(folder / "data/main_data.hdf5") as file:
        assert set(file) == {f"episode_{index}" for index in range(metadata["total_episodes"])}
        for index in range(len(file)):
            group = file[f"episode_{index}"]
            count = int(group.attrs["total_steps"])
            assert group.attrs["id"] == index
            assert {len(group[name]) for name in ("actions", "rewards", "terminations", "truncations")} == {count}
            assert not group["terminations"][:].any()
            assert list(group["truncations"]) == [False] * (count - 1) + [True]
            seen = group["observations"][:]
            assert len(seen) == len(group["infos/start_s"]) == count + 1
            episodes.append(
                {
                    "video_id": group.attrs["video_id"],
                    "split": group.attrs["split"],
                    "observations": seen[:-1],
                    "after": seen[-1],
                    "actions": group["actions"][:],
                    "rewards": group["rewards"][:],
                    "start_s": group["infos/start_s"][:-1],
                    "end_s": group["infos/end_s"][:-1],
                }
            )
    assert sum(len(one["actions"]) for one in episodes) == metadata["total_steps"]
    return episodes


def read_d3rlpy(path):
    episodes = []
    with h5py.File(path) as file:
        assert file["version"][()] == b"2.1"
        assert file["columns"][:].tolist() == [b"observations", b"actions", b"rewards", b"terminated"]
        for index in range(int(file["num_episodes"][()])):
            assert not file[f"terminated_{index}"][()]
            assert file[f"rewards_{index}"].shape[1:] == (1,)
            episodes.append(
                {
                    "video_id": file[f"video_id_{index}"].asstr()[()],
                    "split": file[f"split_{index}"].asstr()[()],
                    "observations": file[f"observations_{index}"][:],
                    "actions": file[f"actions_{index}"][:],
                    "rewards": file[f"rewards_{index}"][:, 0],
                    "start_s": file[f"start_s_{index}"][:],
                    "end_s": file[f"end_s_{index}"][:],
                }
            )
    return episodes


READERS = {
    "npy": read_npy,
    "parquet": read_parquet,
    "lerobot": read_lerobot,
    "minari": read_minari,
    "d3rlpy": read_d3rlpy,
}
