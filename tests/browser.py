"""A real headless browser, driven from its command line: what a page becomes in it, and whom it asks."""

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor chrome is on PATH")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0",
    "--virtual-time-budget=5000", "--dump-dom",
)  # fmt: skip
BROWSERS_OWN = re.compile(
    r"https?://(clients2\.google|accounts\.google|(update|optimizationguide-pa)\.googleapis)\.com/"
)


def visit(folder, page, script, *, width=1280, dark=False):
    """Open the HTML `page` in the browser: (what the JavaScript expression `script` is there, console, URLs asked for).

    The expression is evaluated once everything has loaded, and its promise awaited; URLs that hold their data or
    are the page are no requests.
    """
    folder.mkdir()
    probe = f"""<pre id="probe"></pre><script>addEventListener("load", async () => {{
      document.getElementById("probe").textContent = JSON.stringify(await ({script}));
    }});</script></body>"""
    path, log = folder / "page.html", folder / "net.json"
    head, _, tail = page.rpartition("</body>")
    path.write_text(f"{head}{probe}{tail}", encoding="utf-8")
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", f"--window-size={width},900",
         f"--blink-settings=preferredColorScheme={0 if dark else 1}", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (found,) = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads(log.read_text())["events"]
    urls = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    within = ("data:", "about:", path.as_uri())
    asked = sorted(url for url in urls if not (url.startswith(within) or BROWSERS_OWN.match(url)))
    return json.loads(html.unescape(found)), console, asked
