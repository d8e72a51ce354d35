"""What OpenAI's APIs ask and answer: requests read, answers shaped, streams relayed. No I/O."""
