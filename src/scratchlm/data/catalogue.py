"""The catalogue: every source of data with its files, hashes, licence and addresses."""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from scratchlm.run.params import Section

GPT2Size = Literal["nano", "124M", "355M", "774M", "1558M"]
VOCABULARY_FILES = ("encoder.json", "vocab.bpe")


@dataclass(frozen=True)
class File:
    """One file, pinned by its content. An address without a scheme is a path in this repository.

    archive: the name of the zip file that the addresses lead to; `name` is then its member. Publishers zip anew, so
    only the member is pinned.
    """

    name: str
    sha256: str | None
    size_bytes: int | None
    addresses: tuple[str, ...]
    archive: str | None = None


@dataclass(frozen=True)
class Source:
    """Files that belong together, with their licence and their authors."""

    name: str
    description: str
    licence: str
    citation: str
    files: tuple[File, ...]


_Pin = tuple[str | None, int | None]  # sha256, size in bytes

_BOOK = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"
_CHAPTER = "01_main-chapter-code"
_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master"
_BACKBLAZE = "https://f001.backblazeb2.com/file/LLMs-from-scratch"
_OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models"
_UCI = "https://archive.ics.uci.edu/static/public"
_SAMPLE = "data/sample"
_SMS, _SMS_ARCHIVE = "SMSSpamCollection", "sms+spam+collection.zip"
_HPARAMS, _INDEX, CHECKPOINT_WEIGHTS = "hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"

_VOCABULARY: dict[str, _Pin] = {
    "encoder.json": ("196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", 1_042_301),
    "vocab.bpe": ("1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", 456_318),
}
# We have verified hashes only for 124M. Above it, TensorFlow's CRC of each tensor finds damage, and dvc.lock pins what
# was built. The size of the weights is four bytes per parameter, which is exact for the files that we have measured
# (124M and 355M).
_GPT2: dict[str, dict[str, _Pin]] = {
    "124M": {
        _HPARAMS: ("d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318", 90),
        _INDEX: ("71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687", 5_215),
        CHECKPOINT_WEIGHTS: ("2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118", 497_759_232),
    },
    "355M": {_HPARAMS: (None, None), _INDEX: (None, 10_399), CHECKPOINT_WEIGHTS: (None, 1_419_292_672)},
    "774M": {_HPARAMS: (None, None), _INDEX: (None, None), CHECKPOINT_WEIGHTS: (None, 3_096_120_320)},
    "1558M": {_HPARAMS: (None, None), _INDEX: (None, None), CHECKPOINT_WEIGHTS: (None, 6_230_444_800)},
}
_NANO: dict[str, _Pin] = {
    _HPARAMS: ("552c4ca62ebd0da43a6e54c3ba60e1d47ee7d33718566a54ef55ad29805d1c50", 86),
    _INDEX: ("bee70a5806cb351dfc7d88ad15d828e0118e60e0658c93f6b8b667f8dfe3d6a5", 1_414),
    CHECKPOINT_WEIGHTS: ("105d6764aa4a85b0c009099c1399c4ab56941e4c522b8b6b366a368a4aeb4103", 3_035_648),
    "encoder.json": ("db1585e142bd0678b9232aacf2d51524fe348eb2a19f86d67ab5c54a67aa9cfd", 15_693),
    "vocab.bpe": ("edb13ac6f0e8f3ec1eb4e7a8bfdc00cb480109771ea370556ba7607b39c71bae", 5_189),
}


def _gpt2(size: str) -> Source:
    files = tuple(
        File(name, *pin, (f"{_OPENAI}/{size}/{name}", f"{_BACKBLAZE}/gpt2/{size}/{name}"))
        for name, pin in (_GPT2[size] | _VOCABULARY).items()
    )
    return Source(
        f"gpt2-{size}",
        f"GPT-2 {size}: TensorFlow checkpoint and vocabulary",
        "Modified MIT (openai/gpt-2)",
        "Radford et al., Language Models are Unsupervised Multitask Learners, 2019",
        files,
    )


def _sample(name: str, description: str, *files: File) -> Source:
    return Source(name, description, "CC0 1.0", f"{_SAMPLE}/README.md", files)


_SOURCES = (
    Source(
        "the-verdict",
        "A short story, the book's pretraining text",
        "public domain",
        "Edith Wharton, The Verdict, Scribner's Magazine, 1908",
        (
            File("the-verdict.txt", "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f", 20_479,
                 (f"{_BOOK}/ch02/{_CHAPTER}/the-verdict.txt",)),
        ),
    ),
    Source(
        "tiny-shakespeare",
        "About 40,000 lines of Shakespeare's plays",
        "public domain",
        "Andrej Karpathy, char-rnn, 2015",
        (
            File("input.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", 1_115_394,
                 (f"{_CHAR_RNN}/data/tinyshakespeare/input.txt",)),
        ),
    ),
    Source(
        "sms-spam",
        "SMS Spam Collection: 5,574 messages, each ham or spam",
        "CC BY 4.0",
        "Almeida, Gómez Hidalgo and Yamakami, Contributions to the Study of SMS Spam Filtering,"
        " DocEng 2011; UCI Machine Learning Repository, doi:10.24432/C5CC84",
        (
            File(_SMS, "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d", 477_907,
                 (f"{_UCI}/228/{_SMS_ARCHIVE}", f"{_BACKBLAZE}/{quote(_SMS_ARCHIVE)}"), _SMS_ARCHIVE),
        ),
    ),
    Source(
        "instruction-data",
        "1,100 instructions with their responses",
        "Apache-2.0 (rasbt/LLMs-from-scratch)",
        "Sebastian Raschka, Build a Large Language Model (From Scratch), Manning, 2024",
        (
            File("instruction-data.json", "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944", 203_524,
                 (f"{_BOOK}/ch07/{_CHAPTER}/instruction-data.json",)),
        ),
    ),
    *(_gpt2(size) for size in _GPT2),
    _sample(
        "sample-stories",
        "Generated stories",
        File("stories.txt", "b6e21432411fec95a061530c093be30fd5e3b1ca37e768c19230414313f3f9a5", 1_000_161,
             (f"{_SAMPLE}/stories.txt",)),
    ),
    _sample(
        "sample-messages",
        "Generated ham and spam",
        File(_SMS, "d94a8688be0bb8113bc2a9bb80798208d74df6e9bc11bf7874c7354a02b15726", 200_280,
             (f"{_SAMPLE}/{_SMS_ARCHIVE}",), _SMS_ARCHIVE),
    ),
    _sample(
        "sample-instructions",
        "Generated tasks",
        File("instruction-data.json", "4d7e91b7163dbb77c2528b043c1c639edbf2c12b3a75267f6860df5b7fc978e7", 147_764,
             (f"{_SAMPLE}/instruction-data.json",)),
    ),
    _sample(
        "gpt2-nano",
        "A nano GPT in GPT-2's TensorFlow layout, trained on the generated stories",
        *(File(name, *pin, (f"{_SAMPLE}/gpt2-nano/{name}",)) for name, pin in _NANO.items()),
    ),
)  # fmt: skip
CATALOGUE: dict[str, Source] = {source.name: source for source in _SOURCES}


class SourcesParams(Section):
    """The source for each purpose. vocabulary: the source of encoder.json and vocab.bpe."""

    corpus: Literal["sample-stories", "the-verdict", "tiny-shakespeare"]
    messages: Literal["sample-messages", "sms-spam"]
    instructions: Literal["sample-instructions", "instruction-data"]
    vocabulary: Literal["gpt2-nano", "gpt2-124M"]


def wanted_files(sources: SourcesParams, gpt2_sizes: list[GPT2Size]) -> list[tuple[Source, File]]:
    """Return every file that the parameters name, once, in the catalogue's order; of `vocabulary`, VOCABULARY_FILES."""
    whole = {sources.corpus, sources.messages, sources.instructions, *(f"gpt2-{size}" for size in gpt2_sizes)}
    return [
        (source, file)
        for source in CATALOGUE.values()
        for file in source.files
        if source.name in whole or (source.name == sources.vocabulary and file.name in VOCABULARY_FILES)
    ]
