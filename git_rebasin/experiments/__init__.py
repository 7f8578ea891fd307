"""The paper's experiments, each a notebook with presets, records and figures."""
