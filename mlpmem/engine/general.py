"""Requests of no text in particular, with answers: what a gate of own texts must stay shut for."""

GENERAL = (
    ("How do I boil an egg?",
     "Put the egg in boiling water for eight minutes, then cool it under cold water "
     "and peel it."),
    ("What is the capital of France?",
     "The capital of France is Paris, a city on the river Seine."),
    ("Write a short poem about the sea.",
     "The sea is wide and blue and deep, it sings the tired shore to sleep."),
    ("What is 12 times 8?", "12 times 8 is 96. You can check it by adding 8 twelve times."),
    ("Explain photosynthesis to a child.",
     "Plants eat sunlight. Their leaves use light, water and air to make sugar, "
     "which helps them grow."),
    ("Give me three names for a cat.", "Here are three names: Whiskers, Shadow and Luna."),
    ("How can I sleep better?",
     "Go to bed at the same time every day, keep the room dark, and avoid screens in "
     "the evening."),
    ("Write a Python function that reverses a list.",
     "def reverse(items):\n    return items[::-1]"),
    ("Who wrote Hamlet?", "Hamlet was written by William Shakespeare around the year 1600."),
    ("What is the difference between weather and climate?",
     "Weather is what happens today, while climate is the average of many years."),
    ("Translate good morning into Spanish.", "Good morning in Spanish is buenos dias."),
    ("Tell me a joke.", "Why did the bicycle fall over? Because it was two tired."),
    ("Summarise the story of Cinderella.",
     "A kind girl goes to a ball with the help of a fairy, loses a shoe, and the "
     "prince finds her by it."),
    ("What should I cook for dinner tonight?",
     "You could make pasta with tomatoes, garlic and basil; it takes twenty minutes."),
    ("How does a computer store a picture?",
     "A picture is stored as a grid of small points, and each point has numbers for "
     "its colour."),
    ("Which planet is the largest?", "Jupiter is the largest planet of the solar system."),
    ("Write an email to ask my boss for a day off.",
     "Dear Sam, I would like to take next Friday off. Please let me know if that is "
     "possible. Kind regards"),
    ("What does the word generous mean?",
     "Generous means willing to give more than is needed or expected."),
    ("How far is the moon?", "The moon is about 384,000 kilometres away from the earth."),
    ("Give me tips for a job interview.",
     "Read about the company, prepare examples of your work, and ask questions at "
     "the end."),
    ("Why is the sky blue?",
     "Air scatters blue light more than red light, so the sky looks blue from below."),
    ("What is a prime number?",
     "A prime number is greater than one and can be divided only by one and itself."),
    ("Name some sports that need a ball.",
     "Football, tennis, basketball, volleyball and golf all need a ball."),
    ("How do I start a garden?",
     "Choose a sunny place, loosen the soil, add compost, and plant what grows "
     "easily first."),
)  # fmt: skip

ASKED = (  # questions about some words of a sentence, in words that it need not have
    "What do you know about {}?", "Who or what is {}?", "Where is {}, and since when?",
    "Which one is it: {}?", "How much or how long: {}?", "Can you tell me more about {}?",
    "Why {}?", "For what reason and at what time was it, {}?",
)  # fmt: skip
