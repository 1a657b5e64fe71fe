"""What lies on disk: folders of stages and sweeps, records, locks, leases, and files written all or nothing."""
