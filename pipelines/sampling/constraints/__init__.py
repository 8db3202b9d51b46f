"""Constrained decoding: answers that are held to a JSON schema, a regex or a grammar."""

from pipelines.sampling.constraints.compiler import CompilerBusyError, ConstraintCompiler
from pipelines.sampling.constraints.constraint import Constraint, ConstraintError
from pipelines.sampling.constraints.rules import Rule
from pipelines.sampling.constraints.thinking import Thinking
from pipelines.sampling.constraints.tool_calls import tool_call_constraint

__all__ = [
    "CompilerBusyError",
    "Constraint",
    "ConstraintCompiler",
    "ConstraintError",
    "Rule",
    "Thinking",
    "tool_call_constraint",
]
