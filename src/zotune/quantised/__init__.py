"""Models whose linear layers are packed into few bits: loading them, and what can be trained beside packed weights."""
