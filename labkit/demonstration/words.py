"""The names, things and words that the questions of `stepwise` are made of."""

NAMES = (
    "Ada", "Amir", "Bela", "Carlos", "Chen", "Dana", "Elif", "Emma", "Farid", "Grace", "Hana",
    "Igor", "Jonas", "Kofi", "Lena", "Lucia", "Malik", "Mina", "Nadia", "Noah", "Olga", "Omar",
    "Petra", "Priya", "Rosa", "Samir", "Tomas", "Uma", "Vera", "Yusuf",
)  # fmt: skip

THINGS = (
    "apples", "books", "buttons", "candles", "cards", "coins", "cups", "eggs", "keys", "lemons",
    "marbles", "pencils", "plates", "shells", "stamps", "stickers", "tickets", "tiles",
)  # fmt: skip

SHOPPING = (
    "a notebook", "a lamp", "a scarf", "a pan", "a ticket", "a mug", "a plant", "a ball", "a map",
    "a hat",
)  # fmt: skip

WORDS = (
    "banana", "bottle", "butter", "cabbage", "candle", "carpet", "cheese", "cotton", "dinner",
    "feather", "garden", "hammer", "island", "jacket", "kettle", "ladder", "letter", "market",
    "mirror", "needle", "orange", "pepper", "pillow", "pocket", "rabbit", "saddle", "school",
    "silver", "spoon", "summer", "tomato", "tunnel", "valley", "village", "window", "winter",
)  # fmt: skip

WEEK = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip
