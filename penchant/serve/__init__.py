"""A reward model over HTTP: `penchant serve`."""
