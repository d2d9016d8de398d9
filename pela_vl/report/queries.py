"""Queries with each model's answers, marked as right or wrong by shape, word and colour."""

from collections.abc import Sequence
from html import escape

from pela_vl.report.schema import Answer, Model, Query

# defined once and referred to by each verdict: a filled disc with a tick, an open ring with a cross
SYMBOLS = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true">'
    '<symbol id="hit" viewBox="0 0 12 12"><circle cx="6" cy="6" r="6" fill="currentColor"/>'
    '<path d="M3 6.2 5.2 8.4 9 3.8" fill="none" stroke="var(--paper)" stroke-width="1.8"/></symbol>'
    '<symbol id="miss" viewBox="0 0 12 12"><circle cx="6" cy="6" r="5.3" fill="none" stroke="currentColor"/>'
    '<path d="M3.8 3.8 8.2 8.2M8.2 3.8 3.8 8.2" stroke="currentColor" stroke-width="1.2"/></symbol></svg>'
)


def image_queries(queries: Sequence[Query], models: Sequence[Model]) -> str:
    """Each image with its true captions, and beside them the captions that each model ranked first."""
    return "".join(_image_query(query, models, place) for place, query in enumerate(queries, 1))


def text_queries(queries: Sequence[Query], models: Sequence[Model]) -> str:
    """Each caption and the images that each model ranked first."""
    return "".join(_text_query(query, models) for query in queries)


def _image_query(query: Query, models: Sequence[Model], place: int) -> str:
    truth = "".join(f"<li>{escape(caption)}</li>" for caption in query.truth)
    columns = []
    for css, model, answers in _answers(query, models):
        items = "".join(
            f'<li class="{_verdict(one)}">{_mark(one)}<span>{escape(one.content)}</span></li>' for one in answers
        )
        columns.append(f'<section class="{css}"><h4>{escape(model.name)}</h4><ol>{items}</ol></section>')
    return (
        f'<article class="query"><div><img src="{query.question}" alt="query image {place}" loading="lazy">'
        f'<ul class="truth" aria-label="its own captions">{truth}</ul></div>'
        f'<div class="answers">{"".join(columns)}</div></article>'
    )


def _text_query(query: Query, models: Sequence[Model]) -> str:
    columns = []
    for css, model, answers in _answers(query, models):
        images = "".join(
            f'<figure class="{_verdict(one)}"><img src="{one.content}" alt="rank {rank}" loading="lazy">{_mark(one)}'
            "</figure>"
            for rank, one in enumerate(answers, 1)
        )
        columns.append(
            f'<section class="{css}"><h4>{escape(model.name)}</h4><div class="images">{images}</div></section>'
        )
    return (
        f'<article class="shelf"><blockquote>\N{LEFT DOUBLE QUOTATION MARK}{escape(query.question)}'
        f'\N{RIGHT DOUBLE QUOTATION MARK}</blockquote><div class="answers">{"".join(columns)}</div></article>'
    )


def _answers(query: Query, models: Sequence[Model]) -> list[tuple[str, Model, list[Answer]]]:
    """(CSS class, model, answers) in the order of the models; a model without answers is left out."""
    return [
        (f"m{place}", model, query.retrieved[model.name])
        for place, model in enumerate(models)
        if model.name in query.retrieved
    ]


def _verdict(answer: Answer) -> str:
    return "hit" if answer.hit else "miss"


def _mark(answer: Answer) -> str:
    verdict = _verdict(answer)
    return f'<span class="verdict"><svg aria-hidden="true"><use href="#{verdict}"/></svg>{verdict}</span>'
