"""What all backends share: config, parameter spec, checkpoint files, tokenizer. Imports no framework."""
