"""The networks: encoder, state, head and loss."""
