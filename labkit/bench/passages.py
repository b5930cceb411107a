"""The passages that a lab reads unless it is given others: eight of each of two kinds of text.

Those of the King James Bible (public domain) are from books that the demo's adapter `kjv` was not
trained on. The others were written for labkit.
"""

from __future__ import annotations

KING_JAMES = (
    "Then the mariners were afraid, and cried every man unto his god, and cast forth the wares "
    "that were in the ship into the sea, to lighten it of them. But Jonah was gone down into the "
    "sides of the ship; and he lay, and was fast asleep. So the shipmaster came to him, and said "
    "unto him, What meanest thou, O sleeper? arise, call upon thy God, if so be that God will "
    "think upon us, that we perish not. And they said every one to his fellow, Come, and let us "
    "cast lots, that we may know for whose cause this evil is upon us. So they cast lots, and the"
    " lot fell upon Jonah.",
    "And said, I cried by reason of mine affliction unto the LORD, and he heard me; out of the "
    "belly of hell cried I, and thou heardest my voice. For thou hadst cast me into the deep, in "
    "the midst of the seas; and the floods compassed me about: all thy billows and thy waves "
    "passed over me. Then I said, I am cast out of thy sight; yet I will look again toward thy "
    "holy temple.",
    "And when these days were expired, the king made a feast unto all the people that were "
    "present in Shushan the palace, both unto great and small, seven days, in the court of the "
    "garden of the king's palace; Where were white, green, and blue, hangings, fastened with "
    "cords of fine linen and purple to silver rings and pillars of marble: the beds were of gold "
    "and silver, upon a pavement of red, and blue, and white, and black, marble. And they gave "
    "them drink in vessels of gold, (the vessels being diverse one from another,) and royal wine "
    "in abundance, according to the state of the king.",
    "When Mordecai perceived all that was done, Mordecai rent his clothes, and put on sackcloth "
    "with ashes, and went out into the midst of the city, and cried with a loud and a bitter cry;"
    " And came even before the king's gate: for none might enter into the king's gate clothed "
    "with sackcloth.",
    "One generation passeth away, and another generation cometh: but the earth abideth for ever. "
    "The sun also ariseth, and the sun goeth down, and hasteth to his place where he arose. The "
    "wind goeth toward the south, and turneth about unto the north; it whirleth about "
    "continually, and the wind returneth again according to his circuits. All the rivers run into"
    " the sea; yet the sea is not full; unto the place from whence the rivers come, thither they "
    "return again. All things are full of labour; man cannot utter it: the eye is not satisfied "
    "with seeing, nor the ear filled with hearing.",
    "To every thing there is a season, and a time to every purpose under the heaven: A time to be"
    " born, and a time to die; a time to plant, and a time to pluck up that which is planted; A "
    "time to kill, and a time to heal; a time to break down, and a time to build up; A time to "
    "weep, and a time to laugh; a time to mourn, and a time to dance; A time to cast away stones,"
    " and a time to gather stones together; a time to embrace, and a time to refrain from "
    "embracing;",
    "Cast thy bread upon the waters: for thou shalt find it after many days. Give a portion to "
    "seven, and also to eight; for thou knowest not what evil shall be upon the earth. If the "
    "clouds be full of rain, they empty themselves upon the earth: and if the tree fall toward "
    "the south, or toward the north, in the place where the tree falleth, there it shall be.",
    "Remember now thy Creator in the days of thy youth, while the evil days come not, nor the "
    "years draw nigh, when thou shalt say, I have no pleasure in them; While the sun, or the "
    "light, or the moon, or the stars, be not darkened, nor the clouds return after the rain:",
)
EVERYDAY = (
    "The train leaves at nine, so we should be at the station a little earlier. If you are "
    "hungry, there is a small shop next to the platform that sells sandwiches, and the coffee "
    "there is better than on board.",
    "When you move into a new flat, read the meters on the first day and take a picture of each. "
    "The company will ask for the numbers later, and nobody remembers them after a week of "
    "carrying boxes.",
    "Our library has changed its hours for the summer. It opens at ten on weekdays and closes at "
    "six, except on Thursday, when you can stay until eight. Books can be returned at any time "
    "through the box by the door.",
    "I bought the bicycle second hand from a neighbour who was moving abroad. The brakes needed "
    "new cables and one tyre was flat, but the frame is light and it shifts without a sound.",
    "To make a simple soup, fry an onion slowly in a little oil, add two carrots and a potato in "
    "small pieces, and cover them with water. After twenty minutes everything is soft enough to "
    "be mashed with a fork.",
    "The meeting was shorter than planned because two people were ill. We agreed on the budget "
    "for the next three months and put off the question of the new office until somebody has seen"
    " the rooms.",
    "If the screen stays dark after an update, hold the power button for ten seconds and start "
    "the computer again. In most cases it then finishes what it had begun, and no file is lost.",
    "Rain is expected in the north during the afternoon, while the coast stays dry and mild. "
    "Tomorrow the wind turns to the west, and by the weekend temperatures will fall to about "
    "eight degrees.",
)
TEXTS = {"King James text": KING_JAMES, "everyday text": EVERYDAY}
"""The first is what a merge is for, the second what it should leave alone."""
