"""Compiles JSON schemas, regexes and grammars to constraints, with llguidance.

llguidance is one Rust wheel for every Python from 3.9 on, without a compiler and without torch. xgrammar, the other
library that serving systems use, needs torch, which this package does without. Neither takes a millisecond for a mask
of 262,144 tokens.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipelines.errors import InputError
from pipelines.sampling.constraints.constraint import Constraint
from pipelines.sampling.constraints.rules import Rule
from pipelines.sampling.constraints.thinking import Thinking
from pipelines.sampling.constraints.vocabulary import GrammarVocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

TIME_LIMIT_S = 10.0
_MAX_CACHED = 64
_MAX_RUNNING = 4
_BUSY = "no grammar can be compiled now: others take too long, try again later"


class CompilerBusyError(Exception):
    """Raised when grammars of other requests take so long that a request's own can't be compiled."""


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
        self._matchers: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
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

    def compile(self, rule: Rule, thinking: Thinking | None = None, answer: Rule | None = None) -> Constraint:
        """Makes the constraint of an answer.

        Args:
            rule: What the answer is held to.
            thinking: What may come before; None: nothing.
            answer: A rule to which the grammar of the first refers as `@answer`.

        Raises:
            InputError: A rule is wrong, has a feature that is not supported, or takes too long to compile.
            CompilerBusyError: Others take too long.
        """
        vocabulary, grammars = self.warm_up(), [dict(rule.body)]
        if thinking is not None:
            self.compile(rule, None, answer)  # first: its errors would come after the thinking
            grammars = [{"lark_grammar": thinking.grammar(vocabulary)}, {"name": "body", **rule.body}]
        if answer is not None:
            grammars.append({"name": "answer", **answer.body})
        grammar = json.dumps({"grammars": grammars})
        matcher = self._compiled(rule, vocabulary, grammar)
        return Constraint(matcher.deep_copy(), vocabulary.mask_size, vocabulary.vocab_size)

    def json_schema(self, schema: Any, thinking: Thinking | None = None) -> Constraint:
        """An answer that is JSON for this schema (drafts 2020-12 and 7), on one line, with properties in its order.

        Raises:
            InputError: The schema has a feature that is not supported, or is too large.
        """
        return self.compile(Rule.json_schema(schema), thinking)

    def json_object(self, thinking: Thinking | None = None) -> Constraint:
        """An answer that is any JSON object."""
        return self.compile(Rule.json_object(), thinking)

    def regex(self, pattern: str, thinking: Thinking | None = None) -> Constraint:
        """An answer that a regular expression matches as a whole, in the syntax of Rust's regex crate.

        Raises:
            InputError: The expression is wrong or too large, or has look-around or back references.
        """
        return self.compile(Rule.regex(pattern), thinking)

    def choice(self, texts: Sequence[str], thinking: Thinking | None = None) -> Constraint:
        """An answer that is one of these texts.

        Raises:
            InputError: There are none or too many, or one is empty or too large.
        """
        return self.compile(Rule.choice(texts), thinking)

    def grammar(self, lark: str, thinking: Thinking | None = None) -> Constraint:
        """An answer for a grammar in llguidance's variant of Lark, which begins with the rule `start`.

        Raises:
            InputError: The grammar is wrong or too large.
        """
        return self.compile(Rule.grammar(lark), thinking)

    def _compiled(self, rule: Rule, vocabulary: GrammarVocabulary, grammar: str) -> LLMatcher:
        """The matcher of a grammar, which is compiled once, however many ask for it and whether it can be or not."""
        with self._lock:
            future = self._matchers.get(grammar)
            is_new = future is None
            future = self._matchers[grammar] = future or Future()
            self._matchers.move_to_end(grammar)
            while len(self._matchers) > _MAX_CACHED:
                self._matchers.popitem(last=False)
        if is_new:
            self._start(future, grammar, lambda: _matcher(rule.kind, vocabulary, grammar))
        try:
            return future.result(TIME_LIMIT_S)
        except FutureTimeoutError:
            if not future.running():
                raise CompilerBusyError(_BUSY) from None
            message = f"the {rule.kind} takes more than {TIME_LIMIT_S:g} s to compile: make it simpler"
            raise InputError(message) from None

    def _start(self, future: Future[LLMatcher], grammar: str, make: Callable[[], LLMatcher]) -> None:
        """Compiles in a thread of its own, which is left behind if it takes too long; few may run at a time."""
        if not self._running.acquire(timeout=TIME_LIMIT_S):
            with self._lock:
                self._matchers.pop(grammar, None)
            future.set_exception(CompilerBusyError(_BUSY))
            return
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(make())
            except InputError as error:
                future.set_exception(error)
            except BaseException as error:  # panics of the library are no Exceptions
                future.set_exception(InputError(f"the grammar can't be compiled: {str(error)[:300]}"))
            finally:
                self._running.release()

        threading.Thread(target=run, name="grammar", daemon=True).start()


def _matcher(kind: str, vocabulary: GrammarVocabulary, grammar: str) -> LLMatcher:
    """Compiles a grammar and tries its first two tokens, which may be nothing, or too much."""
    from llguidance import LLMatcher, LLParserLimits

    # The limits of a step bound the time of a mask to tens of milliseconds; a grammar that needs more ends its request.
    matcher = LLMatcher(
        vocabulary.tokenizer, grammar, log_level=0, limits=LLParserLimits(step_lexer_fuel=100_000, verbose_errors=False)
    )
    failed = matcher
    if not matcher.is_error():
        failed = _tried(matcher)
    if failed.is_error():
        reason = str(failed.get_error()).removesuffix("<non-verbose/>").strip()
        raise InputError(f"the {kind} can't be used: {reason[:300]}")
    return matcher


def _tried(matcher: LLMatcher) -> LLMatcher:
    """The matcher after its first mask, or a copy of it after its second one."""
    mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    matcher.compute_ff_tokens()
    if matcher.is_error():
        return matcher
    trial = matcher.deep_copy()
    if mask.any():
        first = int(np.unpackbits(mask, bitorder="little").argmax())
        trial.consume_token(first)
        trial.compute_bitmask()
    return trial
