"""Roll-ups: the hours that changed, counted again."""
