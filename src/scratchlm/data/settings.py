"""The section `tokenize` of params.yaml."""

from typing import Literal

from scratchlm.data.corpus import CorpusParams
from scratchlm.data.instructions import InstructionsParams
from scratchlm.data.messages import MessagesParams
from scratchlm.data.preferences import PreferencesParams
from scratchlm.run.params import Section


class TokenizeParams(Section):
    """finetuning_tokenizer: of messages, instructions and pairs: the corpus' own, or that of `sources.vocabulary`."""

    finetuning_tokenizer: Literal["corpus", "vocabulary"]
    corpus: CorpusParams
    messages: MessagesParams
    instructions: InstructionsParams
    preferences: PreferencesParams
