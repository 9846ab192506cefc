"""One module for each scenario: `run(conditions)` measures and returns a section of the table."""
