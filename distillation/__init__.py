"""Training the student: prompts in the loop, data, evaluation. Serving never imports this."""
