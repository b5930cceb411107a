"""Lab: the whole bench in one cell. Draw the gradient, hear the model, write the merge."""

from __future__ import annotations

import html
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from traitlets import TraitError

from labkit.bench import view
from labkit.bench.answering import Answers, Heard
from labkit.bench.background import REST, Latest
from labkit.bench.blind_listening import BlindListening, votes_frame
from labkit.bench.conversation import Conversation, asked
from labkit.bench.evidence import TOKENS as EVIDENCE_TOKENS
from labkit.bench.evidence import evidence, quick_copy, said_of
from labkit.bench.export_choice import ExportChoice
from labkit.bench.fit_fold import FitFold
from labkit.bench.many_prompts import ManyPrompts
from labkit.bench.painting import Painting
from labkit.bench.panel import Panel
from labkit.bench.passages import TEXTS
from labkit.bench.remembering import remember, remembered, runs_file, terms_in
from labkit.bench.runs import Question, Run, Runs, Turn, mix_of, terms_of
from labkit.bench.saving import Saving
from labkit.bench.text_choice import TextChoice
from labkit.bench.trail import Trail
from labkit.errors import LabkitError, shown, with_kind
from labkit.exporting.calibration import domains_of
from labkit.figures import picture_html, recipe_picture
from labkit.figures.gradient_figure import described
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import LiveModel, Mix, live, whole_answers
from labkit.inference.prompts import CHAT, PLAIN, TEMPLATES, formats, formatted
from labkit.merging.module_rows import gradients_in_force
from labkit.merging.planning import Plan, plan
from labkit.merging.recipe import Recipe, Term
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import open_source
from labkit.models.source import Source
from labkit.probing.text_plane import Given, as_texts, excerpt
from labkit.surveys.delta_survey import layer_norms
from labkit.surveys.rounding_loss import rounding_sentence, survival
from labkit.widgets.editor import GradientEditor
from labkit.writing.receipt import Receipt

if TYPE_CHECKING:
    import pandas as pd

WHOLE_BASE_BYTES = 500_000_000
"""Up to this size of the base, what rounding loses is measured on every row of each tensor."""
ROUNDING_ROWS = 16
"""Rows of each tensor on which it is measured for larger bases."""
DELAY = 0.15
"""Seconds without a change after which the model is asked again."""
FORMATS = (PLAIN, CHAT, *TEMPLATES)
EARLIER = "Of an earlier gradient; it is measured again when your hand rests. "

_labs: dict[str, Lab] = {}
"""The lab that each notebook cell shows, so that running the cell again ends the old one."""


class Lab:
    """The lab bench as one widget: draw a gradient, hear the model with it, write the merge.

    Args:
        base: the base model; or a recipe (or the path of one), and then alone.
        adapters: one or more LoRAs; or full models of the base's architecture.
        gradient: the gradient to begin with, for every adapter. If left out, what was drawn last
            for this base and these adapters comes back; the first time, it is the whole LoRA.
        rest: the weight of what adapters change outside the layers, as in a recipe.
        texts: two texts by name, what the merge is for and then what it should leave alone: each
            a list of passages, a `Texts`, or one passage. Their NLLs are the axes of the plane, and
            "What matters" measures on them. More of them can be chosen in the fold "Texts".
        prompt: the prompt to begin with.
        format: the prompt's format: "plain", "chat template", "Alpaca" or "Metharme".
        tokens: the longest answer.
        temperature: 0 always takes the most probable token.
            Of prompt, format, tokens and temperature, what was chosen last comes back, unless the
            cell says something else than it did then.
        device: where the model runs, as in `live`; likewise `dtype` and `quantize`, which concern
            what is heard and not what is written.

    Raises:
        LabkitError: whatever `plan` refuses, or not two texts.
    """

    def __init__(
        self,
        base: Recipe | Checkpoint | str | Path,
        *adapters: Source | Checkpoint | str | Path,
        gradient: Gradient | None = None,
        rest: float | None = None,
        texts: Mapping[str, Given] | None = None,
        prompt: str = "In the beginning",
        format: str = PLAIN,
        tokens: int = 48,
        temperature: float = 0.0,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Literal["nf4", "int8"] | None = None,
    ) -> None:
        if isinstance(base, (str, Path)) and str(base).endswith((".yaml", ".yml")):
            base = Recipe.load(base)
        if not isinstance(base, Recipe):
            checkpoint = Checkpoint.open(base)
            first = Gradient.constant(checkpoint.layers) if gradient is None else gradient
            terms = [Term(open_source(adapter), first) for adapter in adapters]
            recipe = Recipe(checkpoint, terms, rest)
            restored = gradient is None
        else:
            recipe, restored = base, False
        plan(recipe)  # whatever is wrong is said now, and not by a button
        if not recipe.method.linear:
            raise LabkitError(
                f"the lab turns layer weights while the model runs, and the method "
                f"{recipe.method.name} is no sum of what each adapter adds; merge it instead "
                "(lk.plan)"
            )
        known: dict[str, Given] = {
            name: given if isinstance(given, str) else as_texts(name, given)
            for name, given in (texts or TEXTS).items()
        }
        if len(known) < 2:
            raise LabkitError(f"the lab probes two texts, found {len(known)}")
        self.texts = dict(list(known.items())[:2])
        self.error: BaseException | None = None
        self._recipe = recipe
        self._heard_on: dict[str, Any] = {"device": device, "dtype": dtype, "quantize": quantize}
        self._live: LiveModel | None = None
        self._about = ""
        self._loading = threading.RLock()
        self._answers: Answers | None = None
        self._switching = False
        self._work = Latest(self._failed)
        self._matters = Latest(self._not_measured)
        self._heard: tuple[Question, Heard] | None = None
        self._pictures: list[Any] = []
        first_term = recipe.terms[0]
        self.editor = GradientEditor(
            first_term.weights,
            names=(recipe.base.name, first_term.source.name),
            picture_id=secrets.token_hex(6),
            others_can_be_chosen=True,
            subject=_subject(0, ""),
        )
        self.painting = Painting(self._painted)
        names = [term.source.name for term in recipe.terms]
        exporting = ExportChoice(domains_of(recipe), self.texts)
        self.panel = Panel(names, self._scopes(), self.painting, exporting)
        if format not in FORMATS:
            raise LabkitError(f"no prompt format {shown(format)!r}; there are {', '.join(FORMATS)}")
        self._said = {
            "prompt": prompt, "format": format, "tokens": tokens, "temperature": temperature,
            "seed": 0,
        }  # fmt: skip
        for name, value in self._said.items():
            self.panel.settings[name].value = value
        self._restore(terms=restored)
        self._trail = Trail(
            Runs(runs_file(recipe, quantize)), recipe.terms, self._recall, self.panel.show_compared
        )
        runs = self._trail.runs
        self._choice = TextChoice({**TEXTS, **known}, list(self.texts), self._use_texts)
        self._conversation = Conversation(self._turn, self._changed)
        self._listening = BlindListening(
            self._trail.choices, self._question, self._ask_two, runs.votes, runs.vote
        )
        self._fitting = FitFold(
            self.panel,
            lambda: self._recipe,
            self._draw_terms,
            lambda: self.model,
            lambda: self.texts,
        )
        self._saving = Saving(self.panel, lambda: self._recipe, lambda: self.runs)
        self._many = ManyPrompts(lambda: self.model, self._starred_mixes, self._question)
        self._trail.shown = self._listening.refresh
        self._trail.begin(self._recipe.terms, self.texts, self._question())
        self._show_in_force()
        self._connect()
        self.widget = self.panel.around(
            self.editor,
            self._conversation.widget,
            self._trail.map,
            {
                "Runs": self.panel.runs(self._trail.table),
                "Texts": self._choice.widget,
                "Listen blind": self._listening.widget,
                "A file of prompts": self._many.widget,
            },
        )
        self._changed()

    # What the screen says

    def clear(self, adapter: int, pattern: str) -> None:
        """Take away the gradient that some modules have of their own.

        Args:
            adapter: the adapter's number.
            pattern: the modules, as in `recipe.terms[adapter].weights_for`.
        """
        term = self._recipe.terms[adapter]
        kept = {name: each for name, each in term.weights_for.items() if name != pattern}
        self._put(adapter, Term(term.source, term.weights, kept))
        if self.panel.selected == (adapter, pattern):
            self._show_selected()
        self._changed()
        self._ask_what_matters(REST)

    @property
    def gradient(self) -> Gradient:
        """The gradient that the editor shows."""
        return self.editor.gradient

    @gradient.setter
    def gradient(self, gradient: Gradient) -> None:
        self.editor.origin = ""
        self.editor.gradient = gradient

    @property
    def recipe(self) -> Recipe:
        """All that is drawn, for every adapter and kind of module, as a recipe."""
        return self._recipe

    @property
    def runs(self) -> pd.DataFrame:
        """Every gradient that was tried: see `labkit.bench.runs.Runs.frame` for the columns.

        Base, full LoRA and the best constant are the first rows. A run is kept for the base and
        the adapters of this lab, and is there again in a new kernel: the latest 200, and every one
        with a star.
        """
        return self._trail.runs.frame()

    @property
    def votes(self) -> pd.DataFrame:
        """The votes of blind listening: see `labkit.bench.blind_listening.votes_frame`."""
        return votes_frame(self._trail.runs.votes)

    @property
    def receipt(self) -> Receipt | None:
        """The receipt of the last merge that the lab wrote."""
        return self._saving.receipt

    def write(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the merge in the background. After `wait`, `receipt` holds its receipt.

        Raises:
            LabkitError: the lab writes, bakes or exports something else.
        """
        self._saving.write(folder, overwrite)

    def use(self, terms: Sequence[Term]) -> None:
        """Draw what the terms of another recipe say, for every adapter and kind of module.

        Args:
            terms: one for each adapter of the lab, in its order, as `lk.fit` and `lk.pareto` give
                them. What they were fitted on stays in the recipe until something is drawn.

        Raises:
            LabkitError: terms of other adapters, or gradients of another length.
        """
        self.require(terms)
        self._draw_terms(terms)

    def _draw_terms(self, terms: Sequence[Term], origin: str = "") -> None:
        self._recipe = self._with(terms)
        self.panel.fit_said.value = ""
        self._show_selected(origin)
        self._changed()
        self._ask_what_matters(REST)

    def require(self, terms: Sequence[Term]) -> None:
        """Check that the lab can draw terms.

        Raises:
            LabkitError: as `use`.
        """
        mine, theirs = ([one.source.name for one in each] for each in (self._recipe.terms, terms))
        if mine != theirs:
            raise LabkitError(
                f"the lab has the adapters {', '.join(map(shown, mine))}, and these gradients are "
                f"for {', '.join(map(shown, theirs))}; make a lab of the same adapters"
            )
        plan(self._with(terms))

    def _recall(self, run: Run) -> None:
        """Bring a run's gradients and its question back.

        Raises:
            LabkitError: a run of other adapters, or a prompt format that this model has not.
        """
        terms = terms_of(run, self._recipe.terms)
        self.require(terms)
        question, settings = run.question, self.panel.settings
        if question is not None and question.format not in settings["format"].options:
            raise LabkitError(f"this model has no prompt format {shown(question.format)!r}")
        self._draw_terms(terms)
        if question is not None:
            for name, field in settings.items():
                field.value = getattr(question, name)
            self._conversation.set(question.turns)

    def _with(self, terms: Sequence[Term]) -> Recipe:
        own = (old.source for old in self._recipe.terms)
        return replace(
            self._recipe,
            terms=[replace(new, source=source) for new, source in zip(terms, own, strict=True)],
        )

    @property
    def model(self) -> LiveModel:
        """The live model that answers; it is loaded when it is first needed."""
        with self._loading:  # transformers cannot be imported by two threads at once
            if self._live is None or self._live.freed:
                recipe = self._recipe
                self.panel.say(f"loading {shown(recipe.base.name)} …")
                adapters = [term.source for term in recipe.terms]
                self._live = live(recipe.base, *adapters, rest=recipe.rest, **self._heard_on)
                self._about = about(self._live)
                self._answers = Answers(self._live, self.panel.show)
                kinds = formats(self._live.tokenizer)
                if tuple(kinds) != self.panel.kind.options:
                    chosen = self.panel.kind.value
                    self.panel.kind.options = kinds
                    self.panel.kind.value = chosen if chosen in kinds else PLAIN
                self._show_norms()
            return self._live

    def wait(self, seconds: float | None = None) -> None:
        """Wait until all work in the background is done, and raise its error if there was one.

        Raises:
            LabkitError: it takes longer than `seconds`.
        """
        others = self._saving, self._listening, self._many
        # A fit draws, and what is drawn is heard and measured.
        workers = self._fitting.worker, self._work, self._matters
        for worker in (*workers, *(one.worker for one in others)):
            if not worker.wait(seconds):
                raise LabkitError(f"the lab is still at work after {seconds} s")
        for error in (self.error, *(one.error for one in (self._fitting, *others))):
            if error is not None:
                raise error

    def close(self) -> None:
        """Stop all work and take the lab off the screen."""
        self._saving.cancel.set()
        self._work.close()
        self._saving.worker.close()
        self._matters.close()
        self._fitting.worker.close()
        self._listening.worker.close()
        self._many.worker.close()
        self.widget.close()

    # What happens when something is moved or pressed

    def _connect(self) -> None:
        panel = self.panel
        self.editor.observe(lambda _: self._drawn(), "weights")
        self.editor.observe(lambda change: self._choose(change["new"]), "chosen")
        for chooser in (panel.which, panel.scope, self.painting.toggle):
            chooser.observe(lambda _: self._switch(), "value")
        panel.kind.observe(lambda _: self._conversation.show(panel.kind.value), "value")
        self._conversation.show(panel.kind.value)
        for field in (*panel.settings.values(), panel.live):
            field.observe(lambda _: self._changed(), "value")
        panel.again.on_click(lambda _: self._roll_again())
        panel.matters.observe(lambda _: self._ask_what_matters(0.0), "value")
        panel.stop.on_click(lambda _: self._stop())
        panel.answer.on_click(lambda _: self._changed(answer=True))

    def _scopes(self) -> list[str]:
        """The kinds of modules that can have a gradient of their own: `self_attn`, `mlp`."""
        modules = [part.name for term in self._recipe.terms for part in term.source.parts]
        inside = [name for name in modules if self._recipe.base.layer_of(name) is not None]
        kinds = {name.split(".")[-2] for name in inside}
        ordered = sorted(kinds, key=lambda kind: ("attn" not in kind, kind))
        patterns = [name for term in self._recipe.terms for name in term.weights_for]
        return list(dict.fromkeys([*(kind for kind in ordered if not kind.isdecimal()), *patterns]))

    def _drawn(self) -> None:
        if self._switching:
            return
        index, scope = self.panel.selected
        old = self._recipe.terms[index]
        drawn = self.editor.gradient
        new = (
            Term(old.source, old.weights, {**old.weights_for, scope: drawn})
            if scope
            else Term(old.source, drawn, old.weights_for)
        )
        self._put(index, new)
        self._changed()
        self._ask_what_matters(REST)

    def _painted(self, index: int, term: Term) -> None:
        """Take what was painted, layers × modules, into the recipe, and hear it."""
        self._put(index, term)
        self._show_selected(origin="painting")
        self._changed()
        self._ask_what_matters(REST)

    def _choose(self, name: str) -> None:
        """Show in the editor one of the gradients that were outlines."""
        for adapter, pattern in in_force_of(self._recipe) if name else ():
            if self.panel.name_of(adapter, pattern) == name:
                self.panel.which.value, self.panel.scope.value = adapter, pattern
        self.editor.chosen = ""

    def _put(self, index: int, term: Term) -> None:
        """Take a term into the recipe, and show every gradient that is then in force."""
        terms = [*self._recipe.terms[:index], term, *self._recipe.terms[index + 1 :]]
        self._recipe = replace(self._recipe, terms=terms)
        self.panel.fit_said.value = ""  # it was said of what is not drawn any more
        self._show_in_force()

    def _show_in_force(self) -> None:
        """Show the gradients in force beside the one in the editor, and which can be cleared."""
        if self._offered_others():
            self._show_selected()  # which comes back here
            return
        index, scope = self.panel.selected
        self.painting.show(self._recipe, index)
        term = self._recipe.terms[index]
        edited = (index, scope if scope in term.weights_for else "")
        own = f" {self.panel.modules_name(scope)}" if edited[1] else ""
        self.editor.names = [self.editor.names[0], f"{shown(term.source.name, 60)}{own}"]
        in_force = in_force_of(self._recipe)
        self.editor.others = {
            self.panel.name_of(*key): list(gradient)
            for key, gradient in in_force.items()
            if key != edited
        }
        means = {
            (number, pattern): gradient.mean
            for number, term in enumerate(self._recipe.terms)
            for pattern, gradient in term.weights_for.items()
        }
        idle = "" if edited in in_force else self.panel.name_of(*edited)
        self.panel.show_own(means, idle, self.clear)

    def _offered_others(self) -> bool:
        """Offer all modules that have a gradient of their own; whether the chosen ones went."""
        chosen, before = self.panel.selected, self._switching
        self._switching = True
        try:
            self.panel.set_scopes(self._scopes())
        finally:
            self._switching = before
        return self.panel.selected != chosen

    def _switch(self) -> None:
        """Show the gradient of another adapter or kind of module."""
        if self._switching:
            return
        self._show_selected()
        self._work.submit(lambda stopped: self._after_switch(stopped))
        self._ask_what_matters(0.0)

    def _show_selected(self, origin: str = "") -> None:
        index, scope = self.panel.selected
        term = self._recipe.terms[index]
        self._switching = True
        try:
            # One message: the browser knows the origin when the weights arrive.
            with self.editor.hold_sync():
                self.editor.origin = origin
                self.editor.subject = _subject(index, scope)
                self.editor.gradient = term.weights_for.get(scope, term.weights)
        finally:
            self._switching = False
        self._show_in_force()

    def _after_switch(self, stopped: threading.Event) -> None:
        self._show_norms()
        self._refresh(stopped, bool(self.panel.live.value), again=False)

    def _roll_again(self) -> None:
        self.panel.settings["seed"].value += 1  # which is observed
        if not self.panel.live.value:
            self._changed(answer=True)

    def _stop(self) -> None:
        self._work.stop()
        self.panel.say("")

    def _changed(self, answer: bool = False) -> None:
        wanted = answer or bool(self.panel.live.value)
        self._work.submit(lambda stopped: self._refresh(stopped, wanted), DELAY)

    def _refresh(self, stopped: threading.Event, answer: bool, again: bool = True) -> None:
        """Ask the model about what is on the screen; runs in the background.

        Args:
            stopped: set from another thread to end early.
            answer: let the model answer.
            again: also where the answers on the screen are those to what is on the screen.
        """
        self.error = None
        model, panel, recipe = self.model, self.panel, self._recipe
        assert self._answers is not None  # noqa: S101 - made with the model
        panel.problem.value = ""
        panel.say("asking the model …")
        mix = model.mix(recipe.terms)
        question = self._question()
        if question.turns and not question.prompt.strip():
            self._answers.show_turns(self._means(recipe), question.turns)
            panel.say("")
            return
        prompts = asked(question.prompt, question.format, model.tokenizer, question.turns)
        self._answers.measure(prompts[1], mix)
        self._show_picture()
        self._remember()
        self._trail.begin(recipe.terms, self.texts, question)
        given = (prompts, mix, question.tokens, question.temperature, question.seed)
        if not answer:
            self._answers.mark_as_older(*given)
        elif not stopped.is_set() and (again or not self._answers.current(*given)):
            means = self._means(recipe)
            heard = self._answers.write(*given, means, stopped, question.turns)
            if heard is not None:
                self._heard = question, heard
                self._trail.heard(heard)
        if not stopped.is_set():
            panel.say("reading the two texts …")
            self._place(model, mix)
            resolved = plan(recipe)
            panel.show("plan", resolved._repr_html_())
            panel.say("looking at what rounding loses …")
            panel.show("rounding", self._rounding(resolved, stopped))
            panel.say("reading the two texts with constants …")
            self._trail.place_constants(stopped)
        if not self._work.waiting:  # what waits has something to say at once
            panel.say(self._about)

    def _question(self) -> Question:
        """What is asked on the screen, and how."""
        chosen = {name: field.value for name, field in self.panel.settings.items()}
        turns = self._conversation.turns if chosen["format"] == CHAT else ()
        return Question(**chosen, turns=turns)

    def _turn(self) -> Turn | None:
        """The answers on the screen as a turn of the conversation, where they are whole."""
        if self._heard is None or self._heard[0] != self._question():
            return None
        question, heard = self._heard
        self.panel.prompt.value = ""  # for the next one
        return (question.prompt, *heard.texts)

    def _place(self, model: LiveModel, mix: Mix) -> None:
        try:
            self._trail.place(model, self.texts, mix)
        except LabkitError as error:
            self._choice.complain(error)
            raise

    def _use_texts(self, texts: dict[str, Given]) -> None:
        """Read two other texts from now on."""
        self.texts = texts
        self.panel.exporting.use(texts)
        self.panel.fit_said.value = ""
        self._changed()
        self._ask_what_matters(REST)

    def _ask_two(
        self, first: Run, second: Run, question: Question, stopped: threading.Event
    ) -> tuple[str, str] | None:
        """Let two runs answer with the same dice; nothing if it was stopped."""
        model, terms = self.model, self._recipe.terms
        prompt = formatted(question.prompt, question.format, model.tokenizer)
        mixes = [mix_of(run, model, terms) for run in (first, second)]
        steps = model.stream(prompt, mixes, question.tokens, question.temperature, question.seed)
        found = whole_answers(takewhile(lambda _: not stopped.is_set(), steps), len(mixes))
        if stopped.is_set():
            return None
        one, other = (str(model.tokenizer.decode(row, skip_special_tokens=True)) for row in found)
        return one, other

    def _starred_mixes(self, model: LiveModel) -> dict[str, Mix]:
        """What answers a file of prompts, by name."""
        always = self._trail.runs.always
        runs = [always["base"], always["full"], *self._trail.starred()]
        return {run.name: mix_of(run, model, self._recipe.terms) for run in runs}

    def _means(self, recipe: Recipe) -> str:
        """The mean weight of every gradient in force."""
        in_force = in_force_of(recipe)
        if len(in_force) == 1:
            (gradient,) = in_force.values()
            return f"mean weight {gradient.mean:.2f}"
        said = (f"{self.panel.name_of(*key)} {one.mean:.2f}" for key, one in in_force.items())
        return f"mean weights: {', '.join(said)}"

    def _ask_what_matters(self, rest: float) -> None:
        editor = self.editor
        if not self.panel.matters.value:
            self._matters.stop()
            editor.evidence, editor.evidence_note = {}, ""
            return
        if editor.evidence and not editor.evidence_note.startswith(EARLIER):
            editor.evidence_note = EARLIER + editor.evidence_note
        self._matters.submit(self._measure_what_matters, rest)

    def _measure_what_matters(self, stopped: threading.Event) -> None:
        recipe, (index, scope) = self._recipe, self.panel.selected
        if not self.editor.evidence:
            self.editor.evidence_note = "Measuring which layers matter …"
        model = quick_copy(self.model)
        found, read = {}, []
        for name, given in self.texts.items():
            read.append(excerpt(model, name, given, EVIDENCE_TOKENS))
            found[name] = evidence(model, read[-1], recipe, index, scope)
            if stopped.is_set():
                return
        gradient = recipe.terms[index].weights_for.get(scope, recipe.terms[index].weights)
        self.editor.evidence = found
        of = f" of {self.panel.name_of(index, scope)}" if len(in_force_of(recipe)) > 1 else ""
        gradient_said = f"the gradient {gradient.runs()}{of}"
        self.editor.evidence_note = said_of(read, len(gradient), gradient_said)

    def _rounding(self, resolved: Plan, stopped: threading.Event) -> str:
        """What rounding will lose of the merge: as HTML, empty if nothing is merged."""
        if stopped.is_set():
            return ""
        exact = sum(tensor.nbytes for tensor in resolved.base.tensors.values()) <= WHOLE_BASE_BYTES
        said = rounding_sentence(
            survival(resolved, exact=exact, rows=ROUNDING_ROWS, progress=False)
        )
        return view.remark(f"{said}; a recipe with dtype: float32 keeps it") if said else ""

    def _show_norms(self) -> None:
        index, scope = self.panel.selected
        source = self._recipe.terms[index].source
        if isinstance(source, Adapter):
            self.editor.norms = layer_norms(self._recipe.base, source, scope)
        else:
            self.editor.norms = []  # a full model's take as long as a merge
        self.painting.show_norms()

    def _not_measured(self, error: BaseException) -> None:
        self.editor.evidence_note = ""
        self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self.error = error
        self.panel.say("")
        self.panel.problem.value = view.problem(
            f"{with_kind(error)} — change the gradient or the prompt, or run the cell again"
        )

    # The picture that stays when the kernel is gone, and the state that comes back

    def _figure(self) -> Any:
        return recipe_picture(self._recipe)

    def _picture_html(self) -> str:
        recipe = self._recipe
        said = f"Gradient of {recipe.base.layers} layers, {self._means(recipe)}"
        lists = []
        for term in recipe.terms:
            name = f"{html.escape(shown(term.source.name))}: " if len(recipe.terms) > 1 else ""
            lists.append(f"{name}<code>{term.weights}</code>")
            for pattern, gradient in term.weights_for.items():
                lists.append(f"{name}{html.escape(shown(pattern))}: <code>{gradient}</code>")
        caption = f"{html.escape(said)}<br>{'<br>'.join(lists)}"
        picture = picture_html(self._figure(), described(recipe), caption)
        return f'<div class="labkit-picture-{self.editor.picture_id}">{picture}</div>'

    def _show_picture(self) -> None:
        for picture in self._pictures:
            picture.update({"text/html": self._picture_html()}, raw=True)

    def _ipython_display_(self) -> None:
        from IPython import display

        cell = _cell()
        if cell and _labs.get(cell) not in (None, self):
            _labs[cell].close()
        _labs[cell] = self
        display.display(self.widget)  # type: ignore[no-untyped-call]
        # The editor hides this one while it is shown itself.
        picture = display.DisplayHandle()  # type: ignore[no-untyped-call]
        picture.display({"text/html": self._picture_html()}, raw=True)  # type: ignore[no-untyped-call]
        self._pictures.append(picture)

    def _remember(self) -> None:
        chosen = {name: field.value for name, field in self.panel.settings.items()}
        remember(self._recipe, chosen, self._said)

    def _restore(self, terms: bool) -> None:
        """Bring back what was chosen last: always the settings, and the gradients if `terms`.

        Of a setting, what the cell says counts where it is not what the cell said then.
        """
        with suppress(
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            LabkitError,
            TraitError,
        ):  # fmt: skip - nothing was kept, or not for this; the lab then begins afresh
            state = remembered(self._recipe)
            if terms:
                recipe = replace(self._recipe, terms=terms_in(state, self._recipe))
                plan(recipe)
                self._recipe = recipe
                self.editor.gradient = recipe.terms[0].weights
            for name, value in state["chosen"].items():
                if state["said"][name] == self._said[name]:
                    self.panel.settings[name].value = value


def _subject(adapter: int, pattern: str) -> str:
    """The editor's name for a gradient, which has its own undo there."""
    return f"{adapter} {pattern}"


def in_force_of(recipe: Recipe) -> dict[tuple[int, str], Gradient]:
    """The gradients that count for some module, by the adapter's number and the pattern."""
    return {
        (number, pattern): gradient
        for number, term in enumerate(recipe.terms)
        for pattern, gradient in gradients_in_force(term).items()
    }


def about(model: LiveModel) -> str:
    """What the status says of a model that is heard in other numbers than float32 or its own."""
    if model.quantize is None:
        return f"heard {model.note}" if model.note else ""
    try:
        moved = f"KL {model.quantised_kl():.2g} nats per token from the unquantised model"
    except LabkitError as error:
        moved = str(error)
    return f"an approximation: quantised to {model.quantize}; {moved}"


def _cell() -> str:
    """The id of the notebook cell that runs, or nothing."""
    try:
        from IPython import get_ipython

        return str(get_ipython().get_parent()["metadata"]["cellId"])
    except (ImportError, AttributeError, KeyError, TypeError):
        return ""
