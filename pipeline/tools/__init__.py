"""Look at a home and tidy it: status, logs, diff, cancel, gc, adopt. Each module is one command's work; none of them runs a sweep."""
