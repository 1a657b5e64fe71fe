"""What one does to a home: status, logs, diff, plan, cancel, gc, adopt, doctor. None of it runs a sweep."""
