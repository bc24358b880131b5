"""The page of the demo: what stands where, and what happens when something is chosen, dropped or clicked."""

from pathlib import Path
from typing import Any

import gradio as gr

from launch.look import UPLOAD, Pair, Query, Viewer, landing, masks, position_at, thumbnail
from tacaf.vocabulary import InputError, Modality

TITLE = "TACAF: search across visible and infrared"
NOTE = (
    "Choose an example or drop an image of one person, cut out as a detector would. Then choose a match, and click a"
    " place on the query to see where the model's attention finds it on the match."
)
FINE_PRINT = (
    "Uploads are read once and deleted; nothing leaves this machine. Masks and matching are what CMAAM sees on layer 4,"
    " a map of few positions; they work in training only. A near match is no proof of identity: do not decide about"
    " people by it."
)
PICTURES = {  # name to title
    "query": "**Query**: click a place",
    "heat": "**Match**: it is there",
    "mask": "Person on the query",
    "other-mask": "Person on the match",
}
# people stand: two times as high as wide
STYLE = """
#examples .thumbnail-item, #matches .thumbnail-item { aspect-ratio: 1 / 2; }
#examples .grid-container { grid-template-columns: repeat(auto-fill, minmax(3.6rem, 1fr)) !important; }
#matches .grid-container { grid-template-columns: repeat(auto-fill, minmax(5.6rem, 1fr)) !important; }
#matches .caption-label { left: 0; right: 0; max-width: 100%; border-radius: 0; font-size: .7rem; padding: .15rem; }
footer { display: none !important; }
"""
OTHER, SAME = "the other modality", "the same modality"


def theme() -> gr.Theme:
    """Fonts of the reader's own system: none is fetched."""
    return gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_page(viewer: Viewer) -> gr.Blocks:
    """The page over this model and gallery."""
    page = _Page(viewer)
    still: dict[str, Any] = {"interactive": False, "buttons": [], "show_label": False}
    row: dict[str, Any] = {"allow_preview": False, "buttons": [], "object_fit": "contain", "show_label": False}
    choices = [str(modality) for modality in Modality]
    begin = next(modality for modality in reversed(Modality) if viewer.gallery.images.get(modality))
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        query, pair = gr.State(None), gr.State(None)
        gr.Markdown(f"# {TITLE}\n{NOTE}")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                modality = gr.Radio(choices, value=str(begin), label="The query is", elem_id="modality")
                among = gr.Radio([OTHER, SAME], value=OTHER, label="Search among", elem_id="among")
                gr.Markdown(f"**Drop an image** (at most {UPLOAD.mib:g} MiB)")
                upload = gr.File(show_label=False, height=120, elem_id="upload")
                gr.Markdown("**Or choose an example**")
                examples = gr.Gallery(page.examples(str(begin)), height="auto", elem_id="examples", **row)
            with gr.Column(scale=2, min_width=300):
                status = gr.Textbox("No query yet.", label="Status", interactive=False, elem_id="status")
                gr.Markdown("**Matches**, nearest first: who, and the cosine distance")
                matches = gr.Gallery(height="auto", elem_id="matches", **row)
                with gr.Row():
                    pictures = [_titled(title, name, still) for name, title in PICTURES.items()]
        gr.Markdown(FINE_PRINT)

        clicked, heat = pictures[:2]
        shown = [query, pair, status, matches, *pictures]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "multiple"}
        modality.change(page.examples, modality, examples, **quiet)
        examples.select(page.choose_example, [modality, among], shown, **quiet)
        upload.upload(page.take_upload, [upload, modality, among], shown, **quiet)
        matches.select(page.choose_match, query, [pair, status, *pictures], **quiet)
        clicked.select(page.click, [query, pair], [clicked, heat], **quiet)
    return blocks


def _titled(title: str, name: str, settings: dict[str, Any]) -> gr.Image:
    with gr.Column(min_width=140):
        gr.Markdown(title)
        return gr.Image(elem_id=name, **settings)


class _Page:
    """What happens; every method takes and gives what its components hold."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer

    def examples(self, modality: str) -> list:
        held = self.viewer.gallery.images.get(Modality(modality), [])
        return [thumbnail(held[place].read()) for place in self.viewer.examples(Modality(modality))]

    def choose_example(self, modality: str, among: str, event: gr.SelectData) -> tuple:
        kind = Modality(modality)
        place = self.viewer.examples(kind)[event.index]
        held = self.viewer.gallery.images[kind][place]
        return self._ask(held.read(), held.name, kind, among, place)

    def take_upload(self, path: str | None, modality: str, among: str) -> tuple:
        if path is None:
            return _refused("expected an image, got none; drop a file")
        data = Path(path).read_bytes()
        Path(path).unlink()  # it may show a person: once read it is not kept
        return self._ask(data, Path(path).name, Modality(modality), among, None)

    def choose_match(self, query: Query | None, event: gr.SelectData) -> tuple:
        if query is None:
            return (gr.skip(),) * 6
        try:
            return self._compare(query, event.index)
        except InputError as problem:  # the gallery's file is gone or changed
            return gr.skip(), f"Refused: {problem}", *(gr.skip(),) * 4

    def click(self, query: Query | None, pair: Pair | None, event: gr.SelectData) -> tuple:
        if query is None or pair is None:
            return gr.skip(), gr.skip()
        height, width = query.panel_HWC.shape[:2]
        return landing(query, pair, position_at(pair, event.index[0] / width, event.index[1] / height))

    def _ask(self, source: Any, name: str, modality: Modality, among: str, place: int | None) -> tuple:
        try:
            query = self.viewer.ask(source, modality, modality.other if among == OTHER else modality, place)
            found = [
                (thumbnail(self.viewer.held(query, rank).read()), self.viewer.caption(query, rank))
                for rank in range(len(query.matches))
            ]
            pair, status, *pictures = self._compare(query, 0)
        except InputError as problem:
            return _refused(str(problem).replace("the image's bytes", name))
        return query, pair, f"{name}, {modality}: {status}", gr.Gallery(found, selected_index=None), *pictures

    def _compare(self, query: Query, rank: int) -> tuple:
        pair = self.viewer.compare(query, rank)
        text = f"match {rank + 1} of the nearest {len(query.matches)} among the {query.searched} images"
        begin = int(pair.comask_L.argmax())
        return pair, f"{text} · {self.viewer.caption(query, rank)}", *landing(query, pair, begin), *masks(query, pair)


def _refused(text: str) -> tuple:
    """The page as it was, and why."""
    return gr.skip(), gr.skip(), f"Refused: {text}", *(gr.skip(),) * 5
