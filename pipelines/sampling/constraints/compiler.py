"""Compiles JSON schemas, regexes and grammars to constraints, with llguidance.

llguidance is one Rust wheel for every Python from 3.9 on, without a compiler and without torch. xgrammar, the other
library that serving systems use, needs torch, which this package does without. Neither takes a millisecond for a mask
of 262,144 tokens.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.errors import InputError
from pipelines.sampling.constraints.constraint import Constraint
from pipelines.sampling.constraints.limits import (
    MAX_GRAMMAR_CHARACTERS,
    MAX_PATTERN_CHARACTERS,
    check_size,
    checked_schema,
)
from pipelines.sampling.constraints.thinking import Thinking
from pipelines.sampling.constraints.vocabulary import GrammarVocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
"""JSON as Python and the chat templates write it. With free whitespace a weak model may go on with it for ever, and
hardly a token is forced. Features that are not supported are errors."""

TIME_LIMIT_S = 10.0
_MAX_CACHED = 32
_MAX_RUNNING = 4


class SerializableTokenizer(Protocol):
    """A tokenizer that can be written as a tokenizer.json."""

    def to_json(self) -> str:
        """The text of its tokenizer.json."""


class ConstraintCompiler:
    """Makes the constraints of one model's requests.

    A call takes milliseconds, or up to seconds for a large schema; the first one seconds, unless `warm_up` came before:
    call from any thread, but neither the engine's nor that of an event loop.

    vocab_size: number of logits. eos_token_ids: tokens that end a text, which are allowed where a grammar may end.
    """

    def __init__(self, tokenizer: SerializableTokenizer, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, tuple(eos_token_ids)
        self._vocabulary: GrammarVocabulary | None = None
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock, self._vocabulary_lock = threading.Lock(), threading.Lock()
        self._running = threading.Semaphore(_MAX_RUNNING)

    def warm_up(self) -> GrammarVocabulary:
        """Prepares the vocabulary, which takes seconds, and returns it.

        Raises:
            InputError: The tokenizer can't be used for it.
        """
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = GrammarVocabulary(self._tokenizer.to_json(), self._vocab_size, self._eos_token_ids)
            return self._vocabulary

    def json_schema(self, schema: Any, thinking: Thinking | None = None) -> Constraint:
        """An answer that is JSON for this schema (drafts 2020-12 and 7), on one line, with properties in its order.

        Raises:
            InputError: The schema has a feature that is not supported, or is too large.
        """
        body = {"json_schema": checked_schema(schema) | {"x-guidance": JSON_STYLE}}
        return self._compile("JSON schema", body, thinking)

    def json_object(self, thinking: Thinking | None = None) -> Constraint:
        """An answer that is any JSON object."""
        return self.json_schema({"type": "object"}, thinking)

    def regex(self, pattern: str, thinking: Thinking | None = None) -> Constraint:
        """An answer that a regular expression matches as a whole, in the syntax of Rust's regex crate.

        Raises:
            InputError: The expression is wrong or too large, or has look-around or back references.
        """
        from llguidance import LLMatcher

        check_size("regex", pattern, MAX_PATTERN_CHARACTERS)
        (grammar,) = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
        return self._compile("regex", {"lark_grammar": grammar["lark_grammar"]}, thinking)

    def grammar(
        self, lark: str, thinking: Thinking | None = None, *, max_characters: int = MAX_GRAMMAR_CHARACTERS
    ) -> Constraint:
        """An answer for a grammar in llguidance's variant of Lark, which begins with the rule `start`.

        Raises:
            InputError: The grammar is wrong or too large.
        """
        check_size("grammar", lark, max_characters)
        return self._compile("grammar", {"lark_grammar": lark}, thinking)

    def _compile(self, what: str, body: dict[str, Any], thinking: Thinking | None) -> Constraint:
        vocabulary, grammars = self.warm_up(), [body]
        if thinking is not None:
            grammars = [{"lark_grammar": thinking.grammar(vocabulary)}, {"name": "body", **body}]
        grammar = json.dumps({"grammars": grammars})
        with self._lock:
            matcher = self._matchers.get(grammar)
        if matcher is None:
            matcher = self._within_limits(what, lambda: _matcher(what, vocabulary, grammar))
            with self._lock:
                self._matchers[grammar] = matcher
                while len(self._matchers) > _MAX_CACHED:
                    self._matchers.popitem(last=False)
        return Constraint(matcher.deep_copy(), vocabulary.mask_size, vocabulary.vocab_size)

    def _within_limits(self, what: str, function: Callable[[], LLMatcher]) -> LLMatcher:
        """Runs in a thread of its own, which is left behind if it takes too long; few may run at a time."""
        if not self._running.acquire(timeout=TIME_LIMIT_S):
            raise InputError(f"the {what} can't be compiled now: others take too long, try again later")
        future: Future[LLMatcher] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            finally:
                self._running.release()

        threading.Thread(target=run, name="grammar", daemon=True).start()
        try:
            return future.result(TIME_LIMIT_S)
        except FutureTimeoutError:
            raise InputError(f"the {what} takes more than {TIME_LIMIT_S:g} s to compile: make it simpler") from None


def _matcher(what: str, vocabulary: GrammarVocabulary, grammar: str) -> LLMatcher:
    """Compiles a grammar and computes what its first token may be, which may be nothing, or too much."""
    from llguidance import LLMatcher, LLParserLimits

    # The limits of a step bound the time of a mask to tens of milliseconds; a grammar that needs more ends its request.
    matcher = LLMatcher(
        vocabulary.tokenizer, grammar, log_level=0, limits=LLParserLimits(step_lexer_fuel=100_000, verbose_errors=False)
    )
    if not matcher.is_error():
        matcher.compute_bitmask()
        matcher.compute_ff_tokens()
    if matcher.is_error():
        reason = str(matcher.get_error()).removesuffix("<non-verbose/>").strip()
        raise InputError(f"the {what} can't be used: {reason[:300]}")
    return matcher
