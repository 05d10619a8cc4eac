"""The command line: talk to what the pipeline made, and hand it to other tools."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scratchlm.run.errors import UserError

if TYPE_CHECKING:
    from scratchlm.data.tokenizer import Tokenizer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Model = Annotated[Path, typer.Option(help="a folder of data/models")]
TokenizerFolder = Annotated[Path, typer.Option(help="the tokenizer that the model was trained with")]
TOKENIZER = Path("data/tokens/tokenizer")


@app.callback()
def scratchlm() -> None:
    """Use what `dvc repro` built, and compare it between revisions."""


@app.command()
def chat(
    model: Model = Path("data/models/finetune_instruct"),
    tokenizer: TokenizerFolder = TOKENIZER,
    prompt_style: Annotated[
        Literal["alpaca", "phi3"] | None, typer.Option(help="as it was finetuned; without this, as params.yaml says")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
) -> None:
    """Give instructions, one a line, and read the answers; an empty line or end of file ends it."""
    from scratchlm.data.prompts import format_prompt
    from scratchlm.data.tokenizer import load_tokenizer
    from scratchlm.formats.native import load_gpt
    from scratchlm.model.generate import GREEDY, generate
    from scratchlm.model.inference import for_inference
    from scratchlm.run.params import load_yaml

    style = prompt_style or load_yaml(Path("params.yaml"))["tokenize"]["instructions"]["prompt_style"]
    gpt, text = load_gpt(model), load_tokenizer(tokenizer)
    _refuse_strangers(model, gpt.config.vocab_size, tokenizer, text.vocab_size)
    decoder = for_inference(gpt)
    sampling = GREEDY.model_copy(update={"temperature": temperature})
    for turn in range(sys.maxsize):
        try:
            instruction = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not instruction:
            return
        prompt = text.encode(format_prompt({"instruction": instruction, "input": ""}, style))
        printer = _Printer(text)
        generate(
            decoder,
            [prompt],
            max_new_tokens=max_new_tokens,
            end_token_id=text.end_token_id,
            sampling=sampling,
            seeds=[turn],
            on_token=lambda _, token_id, printer=printer: printer.add(token_id),  # type: ignore[misc]
        )
        print(flush=True)


@app.command()
def classify(
    text: Annotated[str, typer.Argument(help="a message")],
    model: Model = Path("data/models/finetune_spam"),
    tokenizer: TokenizerFolder = TOKENIZER,
) -> None:
    """Say whether a message is spam, and how sure the model is."""
    import numpy as np

    from scratchlm.data.tokenizer import load_tokenizer
    from scratchlm.formats.classifier import load_classifier
    from scratchlm.tasks.classification import spam_probabilities
    from scratchlm.tasks.spam import padded_texts

    classifier, settings = load_classifier(model)
    words = load_tokenizer(tokenizer)
    _refuse_strangers(model, classifier.trunk.config.vocab_size, tokenizer, words.vocab_size)
    texts = padded_texts([words.encode(text)], words.end_token_id, settings["padded_tokens"])
    (probability,) = spam_probabilities(classifier, texts, np.arange(1), 1)
    typer.echo(f"{'spam' if probability > 0.5 else 'ham'} (probability of spam {probability:.3f})")


@app.command()
def export(
    output: Annotated[Path, typer.Argument(help="a new folder (huggingface) or file (gguf)")],
    format: Annotated[Literal["huggingface", "gguf"], typer.Option(help="who will read it")],
    model: Model = Path("data/models/finetune_instruct"),
    tokenizer: TokenizerFolder = TOKENIZER,
    half: Annotated[bool, typer.Option("--half", help="gguf: matrices in float16")] = False,
) -> None:
    """Write a language model for transformers, or for llama.cpp and Ollama."""
    from scratchlm.data.tokenizer import BytePairTokenizer, load_tokenizer
    from scratchlm.formats.gguf import save_gguf
    from scratchlm.formats.huggingface import save_huggingface
    from scratchlm.formats.native import load_gpt

    if output.exists():
        raise UserError(f"{output} exists already; name a new one, nothing is overwritten")
    gpt, text = load_gpt(model), load_tokenizer(tokenizer)
    _refuse_strangers(model, gpt.config.vocab_size, tokenizer, text.vocab_size)
    if not isinstance(text, BytePairTokenizer):
        raise UserError("only byte-pair tokenizers can be exported; set tokenizer.kind to gpt2 or bpe and rebuild")
    if format == "huggingface":
        save_huggingface(output, gpt, tokenizer, text)
    else:
        save_gguf(output, gpt, tokenizer, text, half=half)
    typer.echo(f"wrote {output}")


@app.command("import")
def import_model(
    folder: Annotated[Path, typer.Argument(help="config.json, model.safetensors, vocab.json, merges.txt")],
    output: Annotated[Path, typer.Argument(help="a new folder, for model/ and tokenizer/ in our format")],
) -> None:
    """Read a GPT-2 that transformers wrote."""
    from scratchlm.data.tokenizer import save_byte_pairs
    from scratchlm.formats.huggingface import load_huggingface, load_huggingface_tokenizer
    from scratchlm.formats.native import save_gpt

    if output.exists():
        raise UserError(f"{output} exists already; name a new one, nothing is overwritten")
    tokenizer = load_huggingface_tokenizer(folder)
    save_gpt(output / "model", load_huggingface(folder))
    save_byte_pairs(output / "tokenizer", *tokenizer)
    typer.echo(f"wrote {output / 'model'} and {output / 'tokenizer'}")


@app.command()
def results() -> None:
    """What the models are like, in a few lines; data/report.html shows everything."""
    from tabulate import tabulate

    from scratchlm.report.headline import read_headline

    head, align = ["", "", "before training", "result", "95 % interval"], ["left", "left", "right", "right", "right"]
    lines = read_headline(Path("params.yaml"), Path("metrics"))
    typer.echo(tabulate(lines, head, disable_numparse=True, colalign=align).replace("\N{NO-BREAK SPACE}", " "))


@app.command()
def mend() -> None:
    """Make readable again what a killed DVC left half-written, if `dvc repro` says that it cannot read it."""
    from scratchlm.run.watchdog import repair

    for sentence in repair():
        typer.echo(sentence)


@app.command()
def verify(
    against: Annotated[
        str, typer.Option(help="the revision to rebuild; what is not committed is not looked at")
    ] = "HEAD",
    stages: Annotated[list[str] | None, typer.Option(help="only this stage and what it needs; may be repeated")] = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="the table, or everything for a program")] = "text",
) -> None:
    """Rebuild a revision in a clean clone and compare every output and metric; status 1 if one is not as committed."""
    from scratchlm.verify.text import as_json, as_text
    from scratchlm.verify.verify import verify

    # Terminated, as by a CI that runs out of time: the clone goes as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scratchlm: terminated"))
    result = verify(Path(), against, stages or [])
    typer.echo(as_json(result) if format == "json" else as_text(result))
    raise typer.Exit(bool(result.faults))


@app.command()
def compare(
    revisions: Annotated[list[str], typer.Argument(help="branches, tags or commits; the first is the baseline")],
    format: Annotated[Literal["text", "json", "markdown"], typer.Option(help="json holds everything")] = "text",
    all: Annotated[bool, typer.Option("--all", help="also figures that are the same or derived")] = False,
    plot: Annotated[Path | None, typer.Option(help="a new .png or .svg: the intervals as a picture")] = None,
) -> None:
    """Say of each metric whether a branch is better, worse, or not to be told apart (alone: against the workspace)."""
    from scratchlm.compare.compare import compare_revisions
    from scratchlm.compare.text import comparison_json, comparison_markdown, comparison_text

    if plot:
        from scratchlm.compare.chart import check_chart_path, write_comparison_chart

        check_chart_path(plot)
    comparisons = compare_revisions(revisions)
    if format == "json":
        typer.echo(comparison_json(comparisons))
    else:
        typer.echo((comparison_text if format == "text" else comparison_markdown)(comparisons, everything=all))
    if plot:
        write_comparison_chart(plot, comparisons)


@app.command()
def seeds(
    stage: Annotated[str, typer.Option(help="a stage that reads the seed, such as finetune_spam or ablate_spam@lora")],
    seeds: Annotated[int, typer.Option(help="how many runs: with the seed of params.yaml and those after it")] = 5,
    format: Annotated[Literal["text", "json"], typer.Option(help="for people or for programs")] = "text",
    plot: Annotated[Path | None, typer.Option(help="also draw the values: a .png, .svg or .pdf file")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave the experiments for `dvc exp show`")] = False,
) -> None:
    """Rerun one stage under several seeds: the spread of its metrics, and how large a difference must be to count."""
    from scratchlm.compare.seeds import run_seeds
    from scratchlm.compare.spread import as_json, as_text, check_plot, draw, spreads

    if plot:
        check_plot(plot)
    results = run_seeds(Path(), stage, seeds, keep=keep)
    figures = spreads(list(results.values()))
    if format == "json":
        typer.echo(json.dumps({"stage": stage, "seeds": list(results), "metrics": as_json(figures)}, indent=2))
    else:
        typer.echo(
            f"{stage}, {seeds} runs with the seeds {min(results)} to {max(results)}, data and base model the same"
        )
        typer.echo(f"\n{as_text(figures)}")
    if plot:
        draw(plot, f"{stage}, {seeds} seeds", figures)


@app.command()
def build(
    revision: Annotated[str, typer.Argument(help="a branch, tag or commit")],
) -> None:
    """Put a revision's results into DVC's cache, where `compare` finds them; prints the revision that has them."""
    from scratchlm.compare.build import build

    typer.echo(build(Path(), revision))


def _refuse_strangers(model: Path, n_model: int, tokenizer: Path, n_tokenizer: int) -> None:
    if n_model != n_tokenizer:
        raise UserError(
            f"{model} knows {n_model} tokens but {tokenizer} has {n_tokenizer}; "
            "name with --tokenizer the one that the model was trained with"
        )


class _Printer:
    """Prints text as its tokens come; a character that is not complete yet waits for its other bytes."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._shown = ""

    def add(self, token_id: int) -> None:
        self._token_ids.append(token_id)
        text = self._tokenizer.decode(self._token_ids)
        if not text.endswith("\ufffd"):
            print(text.removeprefix(self._shown), end="", flush=True)
            self._shown = text


def main() -> None:
    """The entry point: mistakes of the user end in one sentence, status 1."""
    try:
        app()
    except UserError as error:
        sys.exit(f"scratchlm: {error}")


if __name__ == "__main__":
    main()
