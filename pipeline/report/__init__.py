"""The written comparison: report.html (self-contained), report.md, and the table on the terminal."""
