"""What takes the place of the parts that are not real here: broker, clock, Unleash, engine, trainer, gateway, jobs."""
