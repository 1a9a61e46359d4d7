"""`report`: runs on one page."""

import sys
import time
from pathlib import Path
from typing import Literal

from rbft.report.content import build_content
from rbft.report.gather import gather
from rbft.report.markdown import as_markdown
from rbft.report.page import MB, as_page
from rbft.report.videos import Videos
from rbft.runtime.files import write_text
from rbft.runtime.ranges import check_ranges


def report(
    runs: list[str] | None = None,
    logs: Path = Path("lightning_logs"),
    output: Path | None = None,
    format: Literal["html", "markdown", "both"] = "html",
    title: str = "Report",
    frames: bool = True,
    max_mb: float = 5.0,
) -> None:
    """Put runs on one page: the paper's tables with ours beside them, curves, mistakes, cost.

    Reads only files that runs leave, and needs neither torch nor a GPU. What is damaged or not
    finished is named on the page.

    Args:
        runs: Runs by name or folder, "[smarthome_qwen25, smarthome_qwen25_direct]"; null takes all
            of logs.
        logs: Folder of the runs.
        output: The file to write; null writes report.html or report.md into logs. With both, the
            suffix is put in its place.
        format: html for a page of its own, markdown for the tables as they go into an appendix, or
            both.
        title: The heading.
        frames: Show frames of clips, from the videos where they are still there.
        max_mb: Largest size of the page in megabytes (10^6 bytes); pictures are left out for it.
    """
    began = time.perf_counter()
    check_ranges("", {"max_mb": max_mb})
    gathered = gather(logs, runs)
    content = build_content(gathered)
    said, place = [], output or logs / "report.html"
    if format in ("html", "both"):
        file = place if format == "html" else place.with_suffix(".html")
        made = as_page(content, title, int(max_mb * MB), Videos(gathered.runs) if frames else None)
        write_text(file, made.text)
        size = file.stat().st_size / MB
        dropped = f", {made.dropped} left out to stay within --max_mb" if made.dropped else ""
        said.append(f"{file} ({size:.2f} MB, {made.pictures} pictures{dropped})")
        said += made.notes
    if format in ("markdown", "both"):
        file = output if output and format == "markdown" else place.with_suffix(".md")
        write_text(file, as_markdown(content, title))
        said.append(str(file))
    for one in gathered.problems:
        sys.stdout.write(f"{one.where}: {one.text}\n")
    count = len(gathered.runs)
    passed = time.perf_counter() - began
    sys.stdout.write(
        f"Put {count} run{'s' * (count != 1)} on one page in {passed:.1f} s: {chr(10).join(said)}\n"
    )
