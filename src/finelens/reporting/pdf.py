"""The report as a PDF, printed by a browser of this machine without a window."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from finelens.errors import UserError
from finelens.storage.files import atomic_writer

# Names of browsers that print a page from the command line, in the order in which they are looked for.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge", "brave-browser")
# Where they stand on machines that have them outside PATH.
APPLICATIONS = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "/Applications/Chromium.app/Contents/MacOS/Chromium")
NAMED_BY = "FINELENS_BROWSER"
# Seconds after which a browser is taken for stuck.
PATIENCE = 300


def find_browser() -> str:
    """The browser that prints.

    Returns:
        Its path: what the variable ``FINELENS_BROWSER`` names, else the first of :data:`BROWSERS` and :data:`APPLICATIONS`.

    Raises:
        UserError: There is none.
    """
    if named := os.environ.get(NAMED_BY):
        if found := shutil.which(named):
            return found
        raise UserError(f"{NAMED_BY} names {named}, which is no program here; give the path of Chromium, Chrome or Edge")
    for name in (*BROWSERS, *APPLICATIONS):
        if found := shutil.which(name):
            return found
    raise UserError(
        f"--pdf needs Chromium, Chrome or Edge, and none is on PATH; install one, name one with the variable {NAMED_BY}, "
        "or open report.html and print it"
    )


def print_pdf(page: Path, pdf: Path, browser: str) -> Path:
    """Print a page of ours. The browser starts with a profile of its own, which is removed, so that nobody's open windows take part.

    Args:
        page: The HTML file.
        pdf: The file to write; a whole one replaces it, or nothing does.
        browser: From :func:`find_browser`.

    Returns:
        ``pdf``.

    Raises:
        UserError: The browser ended without a PDF, or it cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="finelens-pdf-") as profile:
        fresh = Path(profile) / "page.pdf"
        # Root may not have the browser's sandbox; the page is our own and its policy runs no script but its own.
        unboxed = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command = [browser, "--headless", "--disable-gpu", *unboxed, f"--user-data-dir={profile}/profile", "--no-pdf-header-footer"]
        try:
            done = subprocess.run([*command, f"--print-to-pdf={fresh}", page.absolute().as_uri()], capture_output=True, timeout=PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{browser} did not print {page} ({error}); open it and print it from there") from error
        if not fresh.is_file() or fresh.read_bytes()[:5] != b"%PDF-":
            raise UserError(f"{browser} ended with {done.returncode} and printed nothing; open {page} and print it from there")
        with fresh.open("rb") as printed, atomic_writer(pdf) as file:
            shutil.copyfileobj(printed, file)
    return pdf
