"""/v1/chat/completions: fields, messages, the turn that any chat API takes, and its answer."""
