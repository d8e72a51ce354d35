"""What the product meets: questions, people, models good and bad, and the task."""
