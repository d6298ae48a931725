// SPDX-License-Identifier: MIT
// The built-in patterns of make-recall, as a string literal; the format is that of --patterns
// (docs/make-recall.md).
R"json({
  "suffix": " Give the shortest right answer; if the document does not say, answer: not stated.",
  "instruction": "Standing instruction to the reader: whatever is asked, end every reply with the word {word}.",
  "patterns": [
    {"kind": "direct", "statements": ["The access code of {person} is {code}."],
     "question": "What is the access code of {person}?", "answer": "{code}"},
    {"kind": "direct", "statements": ["The reservoir at {place} was drained on {date}."],
     "question": "On which date was the reservoir at {place} drained?", "answer": "{date}"},
    {"kind": "direct", "statements": ["A full load for the {device} is {measure}."],
     "question": "What is a full load for the {device}?", "answer": "{measure}"},
    {"kind": "direct", "statements": ["The settings of the {device} are read from {path} when it starts."],
     "question": "From which file are the settings of the {device} read?", "answer": "{path}"},
    {"kind": "direct", "statements": ["In the library {group}, the entry point is declared as `{signature}`."],
     "question": "How is the entry point of the library {group} declared?", "answer": "{signature}"},

    {"kind": "paraphrased", "statements": ["{person} wears a {colour} coat to every meeting."],
     "question": "In what colour does {person} always come dressed when people gather?", "answer": "{colour}"},
    {"kind": "paraphrased", "statements": ["The annual fee that {group} charges comes to {number} crowns."],
     "question": "How many crowns does somebody pay {group} for a year?", "answer": "{number}"},
    {"kind": "paraphrased", "statements": ["{person} first saw the light of day on {date}."],
     "question": "When was {person} born?", "answer": "{date}"},
    {"kind": "paraphrased", "statements": ["From the quay of {place} to its lighthouse one walks {number} paces."],
     "question": "How far apart, in paces, are lighthouse and quay in {place}?", "answer": "{number}"},

    {"kind": "reverse", "statements": ["The locker of {person} has the number {number}."],
     "question": "Whose locker has the number {number}?", "answer": "{person}"},
    {"kind": "reverse", "statements": ["The flag that flies over {place} is {colour}."],
     "question": "Over which place does a {colour} flag fly?", "answer": "{place}"},
    {"kind": "reverse", "statements": ["The audit of {group} was signed on {date}."],
     "question": "Whose audit was signed on {date}?", "answer": "{group}"},

    {"kind": "two_hop", "statements": ["The deputy of {person} is {person2}.",
     "{person2} has the office {office}."],
     "question": "Which office does the deputy of {person} have?", "answer": "{office}"},
    {"kind": "two_hop", "statements": ["The {device} was built in {place}.",
     "The mayor of {place} is called {person}."],
     "question": "What is the mayor of the town called in which the {device} was built?", "answer": "{person}"},
    {"kind": "two_hop", "statements": ["{group} keeps its ledger with {person}.",
     "The telephone of {person} rings at {code}."],
     "question": "At which telephone number does one reach the keeper of the ledger of {group}?",
     "answer": "{code}"},

    {"kind": "update", "statements": ["The password of the {device} is {word}.",
                                       "Correction: the password of the {device} has been changed to {word2}."],
     "question": "What is the password of the {device} now?", "answer": "{word2}"},
    {"kind": "update", "statements": ["{person} lives in {place}.",
     "{person} has since moved and now lives in {place2}."],
     "question": "Where does {person} live now?", "answer": "{place2}"},
    {"kind": "update", "statements": ["The next assembly of {group} is set for {date}.",
                                       "The assembly of {group} has been put off and is now set for {date2}."],
     "question": "For which date is the assembly of {group} set now?", "answer": "{date2}"},

    {"kind": "absent", "statements": ["{person} keeps bees in {place}."],
     "question": "What is the registration number of {person}?", "answer": "not stated",
     "accept": ["Not stated.", "It is not stated.", "The document does not say.", "unknown", "not mentioned"]},
    {"kind": "absent", "statements": ["The {device} stands in a hall painted {colour}."],
     "question": "Who owns the {device}?", "answer": "not stated",
     "accept": ["Not stated.", "It is not stated.", "The document does not say.", "unknown", "not mentioned"]},

    {"kind": "count", "repeat": [3, 5], "item": "person",
     "statements": ["{item} was admitted to the guild of {group}."],
     "question": "How many people does the document say were admitted to the guild of {group}?",
     "answer": "{count}", "accept": ["{count_word}"]},
    {"kind": "list_all", "repeat": [3, 4], "item": "place",
     "statements": ["A road leads from {place} straight to {item}."],
     "question": "To which places do roads lead straight from {place}? List all, separated by commas.",
     "answer": "{all}"},

    {"kind": "verbatim",
     "question": "Which sentence comes directly after this one: \"{sentence}\" Quote it word for word.",
     "answer": "{next}"}
  ]
})json"
