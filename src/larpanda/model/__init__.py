"""The networks: encoder, decoder, heads, and the bundles they are kept in."""
