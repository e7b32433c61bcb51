"""Why a model answers as it does: what each token adds to the answer, and what the attention looks at."""

from distilbert.explanation.explaining import TASKS, Answer, Explanation, Target, Token, explain

__all__ = ["TASKS", "Answer", "Explanation", "Target", "Token", "explain"]
