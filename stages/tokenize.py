"""Turn the raw corpus, messages, instructions and preferences into token ids in Parquet."""

from pathlib import Path

from scratchlm.data.instructions import write_instructions
from scratchlm.data.messages import write_messages
from scratchlm.data.preferences import count_shared_questions, write_preferences
from scratchlm.data.tokenizer import TokenizerParams, copy_tokenizer, make_tokenizer
from scratchlm.data.tokenizing import TokenizeParams, tokenize_corpus, train_texts
from scratchlm.formats.pretrained import vocabulary_folder
from scratchlm.run.context import Run
from scratchlm.run.files import only_file, temporary_folder, write_json
from scratchlm.run.params import Section, Seed, read_params
from scratchlm.run.stage import start


class Params(Section):
    seed: Seed
    tokenizer: TokenizerParams
    tokenize: TokenizeParams


def main(
    run: Run, *, params: Path, vocabulary: Path, corpus: Path, messages: Path, instructions: Path, preferences: Path,
    tokenizer: Path, finetuning_tokenizer: Path, corpus_tokens: Path, message_tokens: Path, instruction_tokens: Path,
    preference_tokens: Path, metrics: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    source = only_file(corpus)
    texts = train_texts(source, p.tokenize.corpus, run.checkpoint, tokenizer)
    with temporary_folder(tokenizer) as scratch:
        given = vocabulary_folder(vocabulary, scratch)
        made = make_tokenizer(p.tokenizer, given, texts, tokenizer)
        wanted = tokenizer if p.tokenize.finetuning_tokenizer == "corpus" else given
        finetuning = copy_tokenizer(wanted, finetuning_tokenizer)
    instruct = p.tokenize.instructions
    report = {
        "vocab_size": made.vocab_size,
        "finetuning_vocab_size": finetuning.vocab_size,
        "messages": write_messages(
            only_file(messages), finetuning, message_tokens, p.tokenize.messages, p.seed, run.say
        ),
        "instructions": write_instructions(only_file(instructions), finetuning, instruction_tokens, instruct),
        "preferences": write_preferences(
            only_file(preferences), finetuning, preference_tokens, p.tokenize.preferences, instruct.prompt_style
        )
        | count_shared_questions(instruction_tokens, preference_tokens, run.say),
        "corpus": tokenize_corpus(
            source, made, corpus_tokens, p.tokenize.corpus, run.checkpoint
        ),  # last: it takes longest
    }
    write_json(metrics, report)


if __name__ == "__main__":
    start(main, "corpus.train.tokens", "vocab_size")
