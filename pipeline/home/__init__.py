"""Inspecting and tidying a home: status, logs, diff, plan, cancel, gc, adopt, doctor. None of them runs a sweep."""
