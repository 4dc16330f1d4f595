"""Draw short words and single letters in several fonts, never digits, and ask about them."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from trainer_worker.pretrain.picture import (
    COLORS,
    Picture,
    Question,
    font,
    font_paths,
    jitter,
    label_patches,
    vary_phrase,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WORD_LIST = """
able air all and arm art ask bag bar bath bed bell best big bill blue boat body book box boy bread
bus cake call card care case city coat cold cook cup dark day deep desk door down draw dream dress
drink dry each east easy end even eye face fact fall farm fast field fill film fine fire floor fly
food foot form free fruit full game garden gas gift girl give glass go gold good grass gray green
ground hair half hall hand happy hard hat head heart heat help here high hill hold home hope hot
hour house ice idea iron jam job joy jump just keep key kind king knife lake lamp land large late
law leaf left leg less life light line list long look lot love low lunch mail man map mark market
milk mind mix moon more most music nail name near neck new next nice night no north nose note off
oil old open out oven page paint paper park part past path pay pen pin plan plate play pool post
pull push quick quiet rain red rest rice ride ring river road rock roof room root rope rose round
rule run safe sail salt same sand save sea seat seed sell send shade shelf ship shoe shop short show
side sign silk sing sit sky sleep slow small smile smoke snow soap sock soft soil song soup south
space spoon stand start stay step stone stop story street strong sugar sun sweet swim table take
talk tall tea tell text thin time top tower town toy tree true try turn very view wait walk wall
warm wash water way week well west wet what wheel white wide wind window wine wing wood word work
world write yard year yes yet you young zone
"""
WORDS = tuple(_WORD_LIST.split())


def word_picture(rng: random.Random) -> Picture:
    """Draw one word or letter and ask what it says, its color and its letters."""
    single = rng.random() < 0.6
    text = rng.choice(LETTERS) if single else rng.choice(WORDS)
    background = rng.choice(("white", "white", "black", "gray", *COLORS))
    dark = background in ("black", "blue", "purple", "brown", "red", "green", "teal", "gray")
    near = {background, "gray"} if background == "white" else {background}
    choices = [c for c in (("white", "yellow", "pink", "orange") if dark else tuple(COLORS)) if c not in near]
    if not dark:
        choices = [c for c in choices if c not in ("white", "yellow", "pink")] or ["black"]
    color = rng.choice(choices)
    shown = text
    if not single:
        style = rng.random()
        shown = text.upper() if style < 0.4 else text.capitalize() if style < 0.55 else text
    elif rng.random() < 0.3:
        shown = text.lower()
    image, mask = _draw(rng, shown, background, color)
    words = [(" " + background,), *((" " + color, " " + letter) for letter in shown)]
    questions = _ask(rng, text.lower(), single, background, color)
    return Picture(image, questions, label_patches(mask, words, share=0.1))


def _draw(rng: random.Random, text: str, background: str, color: str) -> tuple[Image.Image, Image.Image]:
    side = rng.choice((84, 112, 128, 168))
    path = rng.choice(font_paths())
    share = rng.uniform(0.45, 0.95)
    probe = font(path, 100)
    width = max(probe.getlength(text), 1.0)
    size = max(8, int(min(100 * side * share / width, side * rng.uniform(0.45, 0.8))))
    chosen = font(path, size)
    left, top, right, bottom = chosen.getbbox(text)
    x = rng.uniform(0, max(0.0, side - (right - left))) - left
    y = rng.uniform(0, max(0.0, side - (bottom - top))) - top
    image = Image.new("RGB", (side, side), jitter(rng, background))
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(image).text((x, y), text, font=chosen, fill=jitter(rng, color))
    for number, letter in enumerate(text, 1):
        start = x + chosen.getlength(text[: number - 1])
        box = (start, y + top, start + chosen.getlength(letter), y + bottom)
        ImageDraw.Draw(mask).rectangle(box, fill=number)
    return image, mask


def _ask(rng: random.Random, text: str, single: bool, background: str, color: str) -> list[Question]:
    if single:
        asks = [
            "Which letter is this?",
            "What letter is shown?",
            "Which letter do you see?",
            "What letter is in the image?",
        ]
    else:
        asks = [
            "What does it say?",
            "What word is written here?",
            "Read the text.",
            "What is written in the image?",
        ]
        asks += ["Which word is shown?", "What does the text say?"]
    questions = [
        Question("reading", vary_phrase(rng, ask), text) for ask in rng.sample(asks, 2 if single else 1)
    ]
    noun = "letter" if single else rng.choice(("word", "text"))
    questions.append(Question("color", vary_phrase(rng, f"What color is the {noun}?"), color))
    questions.append(Question("background", vary_phrase(rng, "What color is the background?"), background))
    other = rng.choice([c for c in COLORS if c != color])
    asked, answer = (color, "yes") if rng.random() < 0.5 else (other, "no")
    questions.append(Question("yes/no", vary_phrase(rng, f"Is the {noun} {asked}?"), answer))
    if not single:
        asked, letter = rng.choice((("first", text[0]), ("last", text[-1])))
        questions.append(
            Question("letters", vary_phrase(rng, f"What is the {asked} letter of the word?"), letter)
        )
        true = rng.random() < 0.5
        word = text if true else rng.choice([w for w in WORDS if w != text])
        claim = rng.choice(
            ("Does it say {w}?", "Is the word {w}?", "Does the image show the word {w}?")
        ).format(w=word)
        questions.append(Question("reading yes/no", vary_phrase(rng, claim), "yes" if true else "no"))
    thing = rng.choice(("shape", "picture of text", "word", "letter"))
    what = "letter" if single else "word"
    if thing in ("word", "letter"):
        questions.append(Question("what", "Is this a word or a letter?", what))
    rng.shuffle(questions)
    return questions
