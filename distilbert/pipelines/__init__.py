"""From texts to answers, on any backend: text → ids → arrays → backend → arrays → answer.

A task is a module here with a class that is made from a model and a tokenizer, and called with texts. It
knows no framework (the model takes and gives arrays) and nothing of the command line.
"""
