"""Neural modules; sizes are put together in build."""
