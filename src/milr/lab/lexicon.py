"""The words of the lab world: names, colours, numbers, relations, and the lore that riddles ask for.

Only tables and the two rules of English that they need (plurals, third person). language.py makes sentences.
"""

from __future__ import annotations

from milr.lab.world import NOUNS

# Words for each noun, usual one first. An irregular plural follows a slash.
NOUN_WORDS: dict[str, tuple[str, ...]] = {
    "dog": ("dog", "hound"),
    "cat": ("cat", "kitty"),
    "fish": ("fish/fish",),
    "owl": ("owl",),
    "duck": ("duck", "mallard"),
    "frog": ("frog",),
    "turtle": ("turtle", "tortoise"),
    "snail": ("snail",),
    "rabbit": ("rabbit", "bunny"),
    "bee": ("bee", "honeybee"),
    "butterfly": ("butterfly",),
    "penguin": ("penguin",),
    "cow": ("cow",),
    "fox": ("fox",),
    "apple": ("apple",),
    "banana": ("banana",),
    "carrot": ("carrot",),
    "pizza": ("pizza", "slice of pizza/slices of pizza"),
    "cake": ("cake", "piece of cake/pieces of cake"),
    "mushroom": ("mushroom", "toadstool"),
    "car": ("car", "automobile"),
    "bus": ("bus/buses",),
    "bicycle": ("bicycle", "bike"),
    "airplane": ("airplane", "plane", "aeroplane"),
    "sailboat": ("sailboat", "sailing boat"),
    "rocket": ("rocket", "space rocket"),
    "tree": ("tree", "fir tree"),
    "cactus": ("cactus/cacti",),
    "key": ("key",),
    "umbrella": ("umbrella", "brolly"),
    "guitar": ("guitar",),
    "bell": ("bell",),
}

CLASSES: dict[str, tuple[str, ...]] = {
    "animal": NOUNS[:14],
    "food": ("apple", "banana", "carrot", "pizza", "cake", "mushroom"),
    "vehicle": ("car", "bus", "bicycle", "airplane", "sailboat", "rocket"),
    "plant": ("tree", "cactus"),
    "object": ("key", "umbrella", "guitar", "bell"),
}
CLASS_OF = {noun: name for name, nouns in CLASSES.items() for noun in nouns}
CLASS_WORDS = {
    "animal": ("animal", "creature"),
    "food": ("food", "snack"),
    "vehicle": ("vehicle",),
    "plant": ("plant",),
    "object": ("object", "thing"),
}

# What is said of each noun, verb first, as of many ("dogs bark"); '&' joins two verbs. No phrase is shared, so
# each alone decides a riddle.
LORE: dict[str, tuple[str, ...]] = {
    "dog": ("bark", "fetch sticks", "guard the house", "herd sheep", "live in a kennel"),
    "cat": ("meow", "purr", "chase mice", "scratch the sofa", "drink milk from a saucer"),
    "fish": (
        "breathe under water", "have fins and scales", "live in a bowl", "bite a hook",
        "swim in shoals",
    ),
    "owl": ("hoot", "hunt at night", "stand for wisdom", "deliver letters to wizards", "sleep by day"),
    "duck": (
        "quack", "swim & waddle", "have webbed feet", "dive for bread",
        "lead a row of chicks to the pond",
    ),
    "frog": (
        "croak", "start life as a tadpole", "turn into a prince", "sit on lily pads",
        "jump & catch flies",
    ),
    "turtle": (
        "beat the hare", "live for a hundred years", "bury eggs in the beach", "hide in a hard shell",
        "paddle through coral reefs",
    ),
    "snail": (
        "leave a slimy trail", "have eyes on stalks", "carry a spiral house", "eat lettuce at night",
        "crawl very slowly",
    ),
    "rabbit": (
        "hop & nibble clover", "dig burrows", "bring easter eggs", "have long ears",
        "come out of a magic hat",
    ),
    "bee": ("make honey", "sting", "buzz", "live in a hive", "dance to show the way"),
    "butterfly": (
        "start life as a caterpillar", "drink nectar", "flutter", "leave a cocoon",
        "have patterned wings",
    ),
    "penguin": (
        "slide on the ice", "wear a natural tuxedo", "live near the south pole",
        "have wings but never fly", "keep eggs warm on the feet",
    ),
    "cow": ("say moo", "give milk", "graze in the meadow", "chew the cud", "have an udder"),
    "fox": (
        "raid the hen house", "stand for cunning", "have a bushy tail", "live in a den",
        "call the grapes sour",
    ),
    "apple": (
        "keep the doctor away", "grow in an orchard", "fall on newton", "poison snow white",
        "fill a strudel",
    ),
    "banana": (
        "please monkeys", "make people slip", "grow in tropical bunches", "peel by hand",
        "split for ice cream",
    ),
    "carrot": (
        "grow under the ground", "become the nose of a snowman", "help the eyes", "please rabbits",
        "have leafy tops",
    ),
    "pizza": (
        "come from naples", "carry melted cheese", "arrive in a flat box", "bake in a stone oven",
        "need tomato sauce",
    ),
    "cake": (
        "carry candles", "celebrate a birthday", "have layers of cream", "need sugar and flour",
        "end a wedding dinner",
    ),
    "mushroom": (
        "grow in the damp forest", "belong to the fungi", "have a cap and a stem", "sprout after rain",
        "shelter gnomes",
    ),
    "car": (
        "park in a garage", "fill the motorway", "have a trunk and a hood", "need a driving licence",
        "replace the horse carriage",
    ),
    "bus": (
        "stop for many passengers", "take children to school", "carry fifty people",
        "have a double deck in london", "run on a city line",
    ),
    "bicycle": (
        "have two wheels and pedals", "need no fuel", "win the tour de france", "lean on a kickstand",
        "use a chain and a saddle",
    ),
    "airplane": (
        "land on a runway", "cross the ocean in hours", "have a cockpit", "leave from a gate",
        "fly above the clouds",
    ),
    "sailboat": (
        "need the wind", "have a mast", "tack across the bay", "race in a regatta", "drop an anchor",
    ),
    "rocket": (
        "fly to the moon", "leave the earth", "carry astronauts", "start with a countdown",
        "burn liquid oxygen",
    ),
    "tree": (
        "carry christmas lights", "have a trunk with rings", "give wood", "shade the forest floor",
        "drop cones",
    ),
    "cactus": (
        "store water in the desert", "have sharp spines", "live without rain", "grow in hot sand",
        "prick the finger",
    ),
    "key": ("open a lock", "hang on a ring", "start an engine", "vanish in a pocket", "turn in a door"),
    "umbrella": (
        "keep off the rain", "fold after a shower", "carry mary poppins", "open with a button",
        "decorate a cocktail",
    ),
    "guitar": (
        "have six strings", "lead a rock band", "need a pick", "accompany flamenco",
        "sound at the campfire",
    ),
    "bell": (
        "hang in a tower", "call people to church", "say ding dong", "end the lesson",
        "swing on the neck of a goat",
    ),
}  # fmt: skip

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon-yellow"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "gray": ("gray", "grey"),
}
NUMBER_WORDS: dict[int, tuple[str, ...]] = {
    1: ("one", "1", "a single", "exactly one"),
    2: ("two", "2", "a pair of", "a couple of", "exactly two"),
    3: ("three", "3", "a trio of", "exactly three"),
    4: ("four", "4", "a quartet of", "exactly four"),
    5: ("five", "5"),
    6: ("six", "6"),
    7: ("seven", "7"),
    8: ("eight", "8"),
    9: ("nine", "9"),
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "on top of", "higher than"),
    "below": ("below", "under", "beneath", "underneath", "lower than"),
}

IRREGULAR_THIRD = {"have": "has", "be": "is", "do": "does", "go": "goes"}


def plural(word: str) -> str:
    """Plural of a table entry; a slash gives an irregular one."""
    if "/" in word:
        return word.split("/")[1]
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def singular(word: str) -> str:
    return word.split("/")[0]


def third_person(verb: str) -> str:
    if verb in IRREGULAR_THIRD:
        return IRREGULAR_THIRD[verb]
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def lore_phrase(lore: str, many: bool) -> str:
    """'swim & waddle' -> 'swim and waddle' of many, 'swims and waddles' of one."""
    parts = []
    for part in lore.split(" & "):
        verb, _, rest = part.partition(" ")
        parts.append(f"{verb if many else third_person(verb)} {rest}".strip())
    return " and ".join(parts)


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
