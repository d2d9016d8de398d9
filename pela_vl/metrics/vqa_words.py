"""Word tables of the official VQA evaluation: contractions, numbers, articles, punctuation.

They affect published numbers, so the evaluator's slips are kept: "somebody'd" loses its apostrophe. Spellings with a
capital letter are left out, because they can never match a text that was lower-cased before.
"""

# The right spelling, then the wrong ones that become it.
_CONTRACTIONS = """
    ain't aint | aren't arent | can't cant | could've couldve | couldn't couldnt | couldn't've couldn'tve couldnt've
    didn't didnt | doesn't doesnt | don't dont | hadn't hadnt | hadn't've hadnt've hadn'tve | hasn't hasnt
    haven't havent | he'd hed | he'd've hed've he'dve | he's hes | how'd howd | how'll howll | how's hows
    isn't isnt | it'd itd | it'd've itd've it'dve | it'll itll | let's let's | ma'am maam
    mightn't mightnt | mightn't've mightnt've mightn'tve | might've mightve | mustn't mustnt | must've mustve
    needn't neednt | not've notve | o'clock oclock | oughtn't oughtnt | 'ow's'at ow's'at 'ows'at 'ow'sat
    shan't shant | she'd've shed've she'dve | she's she's | should've shouldve | shouldn't shouldnt
    shouldn't've shouldnt've shouldn'tve | somebodyd somebody'd | somebody'd've somebodyd've somebody'dve
    somebody'll somebodyll | somebody's somebodys | someone'd someoned | someone'd've someoned've someone'dve
    someone'll someonell | someone's someones | something'd somethingd | something'd've somethingd've something'dve
    something'll somethingll | that's thats | there'd thered | there'd've thered've there'dve | there're therere
    there's theres | they'd theyd | they'd've theyd've they'dve | they'll theyll | they're theyre | they've theyve
    'twas twas | wasn't wasnt | we'd've wed've we'dve | we've weve | weren't werent | what'll whatll | what're whatre
    what's whats | what've whatve | when's whens | where'd whered | where's wheres | where've whereve | who'd whod
    who'd've whod've who'dve | who'll wholl | who's whos | who've whove | why'll whyll | why're whyre | why's whys
    won't wont | would've wouldve | wouldn't wouldnt | wouldn't've wouldnt've wouldn'tve | y'all yall
    y'all'll yall'll y'allll | y'all'd've yall'd've y'alld've y'all'dve | you'd youd | you'd've youd've you'dve
    you'll youll | you're youre | you've youve
"""

CONTRACTIONS: dict[str, str] = {
    wrong: words[0]
    for entry in _CONTRACTIONS.strip().replace("\n", "|").split("|")
    for words in [entry.split()]
    for wrong in words[1:]
}
"""Words that lack an apostrophe, by the way they are spelt."""

NUMBERS: dict[str, str] = {
    word: str(value)
    for value, words in enumerate(
        ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
    for word in words.split()
}

ARTICLES = frozenset(("a", "an", "the"))

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""In the evaluator's order; neither the period nor the colon nor the apostrophe is among them."""
