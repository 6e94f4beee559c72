"""`zotune compare`: one config, several ways to use or train the model, each in a process of its own; one table."""
