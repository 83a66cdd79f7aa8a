"""The service between Label Studio and the model: HTTP, prompts, images, regions."""
