"""Parts of the tiny MiniMax-M2 fixture: tokenizer, data, model, training, export and evaluation."""
