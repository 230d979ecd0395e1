"""Closed value vocabularies for tool arguments; the BPE learns every word as one token, with and without a space."""

from __future__ import annotations

CITIES = (
    "Oslo Paris Berlin Madrid Rome Vienna Prague Dublin Lisbon Athens Warsaw Helsinki Cairo Tokyo Delhi Lima Quito "
    "Boston Chicago Denver Dallas Austin Seattle Toronto Sydney Bangkok Hanoi Seoul Jakarta Nairobi Lagos Tunis Ankara "
    "Geneva Munich Hamburg Zurich Milan Naples Porto Seville Krakow Riga Tallinn Vilnius Bergen Malmo Lyon Nice Leeds"
).split()
PEOPLE = (
    "Anna Bruno Clara David Elena Felix Greta Hugo Irene Jonas Karin Lucas Maria Nadia Oscar Paula Quentin Rosa Simon "
    "Tessa Ulrich Vera Walter Xenia Yusuf Zoe Alice Boris Carmen Diego"
).split()
PRODUCTS = (
    "lamp chair table sofa carpet mirror kettle toaster blender laptop tablet camera printer keyboard monitor speaker "
    "backpack wallet jacket sweater helmet bicycle guitar violin telescope tent ladder hammer drill bucket"
).split()
LANGUAGES = (
    "French German Spanish Italian Polish Dutch Danish Swedish Finnish Greek Turkish Arabic Hindi Korean Japanese Czech"
).split()
WORDS = (
    "apple bridge candle dragon engine forest garden harbor island jungle kitchen lantern meadow needle orange pepper "
    "river silver thunder umbrella valley window yellow winter summer castle butter cotton diamond feather"
).split()
TASKS = (
    "pasta laundry homework meeting training shopping cooking reading cleaning painting swimming running parking "
    "dentist breakfast lunch dinner interview rehearsal inspection"
).split()
FILE_STEMS = (
    "report budget invoice summary minutes agenda contract schedule inventory results draft notes letter survey "
    "manual recipe readme changelog backup profile"
).split()
FILE_ENDINGS = "txt csv json md pdf log".split()
FOLDERS = "documents downloads projects archive music pictures shared work home desktop".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ROOMS = "bedroom bathroom hallway garage office cellar attic balcony nursery library".split()
COLORS = "red green blue white purple pink orange cyan".split()
GENRES = "jazz rock blues folk techno opera reggae metal soul disco classical country".split()
CURRENCIES = "dollars euros pounds yen francs pesos rupees kronor zloty lira".split()
SYMBOLS = "ACME GLOBEX INITECH HOOLI UMBRA SOYLENT CYBER VANDEL TYREX WONKA STARK WAYNE".split()
TEXTS = (
    "see you soon|call me back|the door is open|dinner is ready|running late today|thanks for the help|"
    "happy birthday to you|the train is delayed|please bring water|good luck tomorrow|the keys are inside|"
    "meet me at noon|the package arrived|do not forget the tickets|I am on my way|the game starts at nine"
).split("|")
SMALL_NUMBERS = [str(n) for n in range(2, 13)]
MINUTES = [str(n) for n in (3, 5, 7, 8, 10, 12, 15, 18, 20, 25, 30, 35, 40, 45, 50, 55, 60, 75, 90)]
HOURS = [str(n) for n in range(6, 23)]
PRICES = [str(n) for n in range(10, 100, 5)] + [str(n) for n in range(100, 1000, 50)]
PERCENTS = [str(n) for n in range(5, 101, 5)]
CODES = [str(n) for n in range(101, 1000, 7)]

POOLS: dict[str, list[str]] = {
    "city": CITIES, "person": PEOPLE, "product": PRODUCTS, "language": LANGUAGES, "word": WORDS, "task": TASKS,
    "folder": FOLDERS, "day": DAYS, "room": ROOMS, "color": COLORS, "genre": GENRES, "currency": CURRENCIES,
    "symbol": SYMBOLS, "text": TEXTS, "small": SMALL_NUMBERS, "minutes": MINUTES, "hour": HOURS, "price": PRICES,
    "percent": PERCENTS, "code": CODES,
    "file": [f"{stem}.{ending}" for stem in FILE_STEMS for ending in FILE_ENDINGS],
    "stem": FILE_STEMS,
}  # fmt: skip


def single_words() -> list[str]:
    """Return every one-word value, the raw material of the copy curriculum."""
    lists = [CITIES, PEOPLE, PRODUCTS, LANGUAGES, WORDS, TASKS, FILE_STEMS, FOLDERS, DAYS, ROOMS, COLORS, GENRES,
             CURRENCIES, SYMBOLS, MINUTES, HOURS, PRICES, PERCENTS, CODES]  # fmt: skip
    return sorted({word for words in lists for word in words})
