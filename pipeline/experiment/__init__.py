"""From YAML to what will run, and why: configs by name, cells, the graph of stages, fingerprints, costs."""
