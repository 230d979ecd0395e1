"""The Hugging Face Hub: a checkpoint streamed in from it, a result published to it."""
