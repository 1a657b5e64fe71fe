"""What is on disk: folders of stages and sweeps, records, locks, leases, and files written atomically."""
