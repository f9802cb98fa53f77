// Sentences to begin with: pairs that mean the same, in several languages, and some that only share words.

export const EXAMPLES = [
  "How do I reset my password?",
  "I forgot my login and cannot sign in.",
  "The bank raised its interest rates.",
  "We sat on the bank of the river.",
  "Ο καιρός είναι υπέροχος σήμερα.",
  "It is a beautiful sunny day.",
  "Das Wetter ist heute schön.",
  "今天天气很好。",
];
