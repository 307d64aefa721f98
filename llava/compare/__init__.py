"""``llava compare``: reduction methods and budgets beside each other, on the same questions of one model."""
