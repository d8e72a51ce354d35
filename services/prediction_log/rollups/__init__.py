"""Roll-ups: hours that changed, counted again."""
