"""What users ask of each service, and how its tools answer: several turns, errors, retries, and requests that fit none.

Every scenario fills a dialogue and returns the names of the tools it used.
"""

# ruff: noqa: E501, RUF001 (sentences and tables, one per line)

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from make_calibration.workspace import Dialogue

PEOPLE = (
    "Amara Nils Yuki Omar Ines Piotr Mei Tomás Leila Jonas Priya Sven Aisha Marek Hana Diego Freya Kofi Lin Zoé".split()
)
CITIES = (
    "Lisbon Oslo Nairobi Osaka Toronto Valencia Kraków Hanoi Bogotá Perth Leeds Tbilisi Seattle Lyon Jakarta".split()
)
AIRPORTS = "LIS OSL NBO KIX YYZ VLC KRK HAN BOG PER LBA TBS SEA LYS CGK".split()
STOCKS = {
    "Northwind": "NWND",
    "Alpine Foods": "ALPF",
    "Quasar": "QSR",
    "Omega Labs": "OMEG",
    "Zeta Corp": "ZETA",
    "Helios": "HELS",
}
FAULTS = (
    ("The export button does nothing", "Clicking Export on the monthly report shows a spinner that never ends. Seen in Firefox and Chrome."),
    ("Login loops after password reset", "After a reset the user is sent back to the login page, without a message. The server log has a 302 loop."),
    ("Invoices show the wrong VAT", "Orders shipped to Norway are billed with 19 % VAT since the release on Monday."),
    ("Search is slow with umlauts", "A search for 'Müller' takes eleven seconds, 'Mueller' takes none. The index seems to be skipped."),
    ("Backups fail on host db-3", "The nightly job ends with 'no space left on device', although the disk is only half full. Inodes?"),
    ("Mobile layout breaks in landscape", "The side bar covers the form when a phone is turned. Happens below 900 pixels."),
)  # fmt: skip


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def travel(d: Dialogue, rng: random.Random) -> list[str]:
    """Book a flight within a budget; the first token has expired."""
    start, end = rng.sample(range(len(CITIES)), 2)
    date, card, cost = (
        f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        f"card_{rng.randint(1000, 9999)}",
        rng.randint(90, 900),
    )
    seat, limit, token = (
        rng.choice(("economy", "business")),
        rng.choice((400, 600, 800, 1000)),
        f"tok-{rng.randrange(16**8):08x}",
    )
    d.say("user", rng.choice((
        f"I have to be in {CITIES[end]} on {date}. What does a {seat} flight from {CITIES[start]} cost? Book it on {card} if it is below {limit} dollars. My access token is {token}.",
        f"Flight {CITIES[start]} → {CITIES[end]}, {date}, {seat} class. Budget: under ${limit}. Card {card}, token {token}. Go ahead and book when it fits, otherwise just tell me the price.",
        f"hi, need to get from {CITIES[start]} to {CITIES[end]} on the {date}, {seat} please. anything under {limit} usd is fine, take it off {card} (token: {token})",
    )))  # fmt: skip
    ask = [
        (("get_nearest_airport_by_city", {"location": CITIES[i]}), _text({"nearest_airport": AIRPORTS[i]}))
        for i in (start, end)
    ]
    d.call(
        "Prices are asked by airport code, so I look up both airports. The two calls do not depend on each other.", ask
    )
    route = {"travel_from": AIRPORTS[start], "travel_to": AIRPORTS[end], "travel_date": date, "travel_class": seat}
    d.call(
        f"{AIRPORTS[start]} to {AIRPORTS[end]}. Now the price.",
        [(("get_flight_cost", route), _text({"travel_cost_list": [cost]}))],
    )
    used = [
        "get_nearest_airport_by_city",
        "get_flight_cost",
        "book_flight",
        "authenticate_travel",
        "compute_exchange_rate",
    ]
    if cost >= limit:
        d.answer(f"{cost} is not below {limit}; the user made booking depend on that. I must not book.",
                 f"A {seat} flight from {CITIES[start]} ({AIRPORTS[start]}) to {CITIES[end]} ({AIRPORTS[end]}) on {date} costs ${cost}. "
                 f"That is above your limit of ${limit}, so I have not booked. Shall I look at another day?")  # fmt: skip
        return used
    book = {
        "access_token": token,
        "card_id": card,
        **{k: route[k] for k in ("travel_date", "travel_from", "travel_to", "travel_class")},
    }
    if rng.random() < 0.5:
        d.call(f"{cost} < {limit}, so I may book.", [(("book_flight", book), _text({"error": "access token expired"}))])
        d.answer("The token has expired. Logging in needs a client secret that I do not have, and I must not invent one.",
                 f"The flight costs ${cost}, below your limit, but the booking was refused: your access token has expired. "
                 "Please send me a fresh token, or client id, secret and refresh token so that I can get one.")  # fmt: skip
        d.say("user", f"Here is a new one: {token[::-1]}")
        book = book | {"access_token": token[::-1]}
    number = rng.randint(10**6, 10**7)
    result = {"booking_id": str(number), "transaction_id": str(number + 71), "booking_status": True}
    d.call(
        f"Below the limit ({cost} < {limit}) and all fields are known: book with the valid token.",
        [(("book_flight", book), _text(result))],
    )
    rate = rng.uniform(0.8, 0.95)
    if rng.random() < 0.4:
        d.answer(
            "Booked.",
            f"Booked: {AIRPORTS[start]} → {AIRPORTS[end]} on {date}, {seat}, ${cost}. Booking number {number}.",
        )
        d.say("user", "Great. How much is that in euros?")
        rated = ("compute_exchange_rate", {"base_currency": "USD", "target_currency": "EUR", "value": float(cost)})
        d.call(
            "The exchange tool converts the amount directly.",
            [(rated, _text({"exchanged_value": round(cost * rate, 2)}))],
        )
        d.answer("Round to cents.", f"About {cost * rate:.2f} euros at the present rate.")
    else:
        d.answer(
            "Success; report number and price.",
            f"Done. Booking {number}: {date}, {CITIES[start]} to {CITIES[end]}, {seat}, ${cost}, charged to {card}.",
        )
    return used


def trading(d: Dialogue, rng: random.Random) -> list[str]:
    """Buy when the price is below the average; check the balance first."""
    name, price = rng.choice(list(STOCKS)), round(rng.uniform(20, 400), 2)
    symbol, amount, balance = STOCKS[name], rng.choice((5, 10, 20, 50, 100)), round(rng.uniform(900, 30_000), 2)
    average = round(price * rng.uniform(0.93, 1.07), 2)
    d.say("user", rng.choice((
        f"If {name} trades below its 20 day average, buy {amount} shares at market price. Otherwise just put it on my watchlist.",
        f"Rule for {name}: price under MA(20) means buy {amount}; anything else means watchlist. Please apply it now.",
        f"I'd like {amount} shares of {name}, but only if they are cheaper than the average of the last 20 days. If they aren't, keep an eye on it for me.",
    )))  # fmt: skip
    d.call("I only have the company's name; the other tools need a symbol. I can fetch the account in the same step.",
           [(("get_symbol_by_name", {"name": name}), _text({"symbol": symbol})),
            (("get_account_info", {}), _text({"account_id": rng.randint(10**4, 10**5), "balance": balance, "binding_card": rng.randint(10**15, 10**16)}))])  # fmt: skip
    info = {
        "price": price,
        "percent_change": round(rng.uniform(-3, 3), 2),
        "volume": rng.randint(10**5, 10**7),
        "MA(5)": round(price * rng.uniform(0.98, 1.02), 2),
        "MA(20)": average,
    }
    d.call(f"{name} is {symbol}.", [(("get_stock_info", {"symbol": symbol}), _text(info))])
    used = [
        "get_symbol_by_name",
        "get_account_info",
        "get_stock_info",
        "place_order",
        "add_to_watchlist",
        "get_order_details",
        "cancel_order",
    ]
    if price >= average:
        d.call(
            f"{price} is not below {average}: no order, watchlist only.",
            [
                (
                    ("add_to_watchlist", {"stock": symbol}),
                    _text({"watchlist": [symbol, rng.choice(list(STOCKS.values()))]}),
                )
            ],
        )
        d.answer(
            "Explain which branch was taken.",
            f"{symbol} is at {price}, its 20 day average at {average}, so I did not buy. It is on your watchlist now.",
        )
        return used
    if price * amount > balance:
        d.answer(f"{amount} × {price} = {price * amount:.2f} is more than the balance of {balance}. The order would fail; say so and offer what is possible.",
                 f"{symbol} is below its average ({price} against {average}), but {amount} shares cost {price * amount:,.2f} and your balance is {balance:,.2f}. "
                 f"It is enough for {int(balance // price)} shares. Do you want these?")  # fmt: skip
        if balance < price:
            return used
        amount = int(balance // price)
        d.say("user", "Yes, take what the money is good for.")
    number = rng.randint(10_000, 99_999)
    order = {"order_type": "Buy", "symbol": symbol, "price": price, "amount": amount}
    d.call(f"{price} < {average} and {amount} × {price} = {price * amount:.2f} ≤ {balance}. Place the order.",
           [(("place_order", order), _text({"order_id": number, "order_type": "Buy", "status": "Pending", "price": price, "amount": amount}))])  # fmt: skip
    d.answer(
        "Pending is not filled; be exact about that.",
        f"Order {number} is placed: {amount} {symbol} at {price}, {price * amount:,.2f} in all. Its status is still pending.",
    )
    if rng.random() < 0.5:
        d.say("user", "Hm, I changed my mind. Can it still be stopped?")
        d.call(
            "It depends on the state, so look before cancelling.",
            [(("get_order_details", {"order_id": number}), _text({"id": number, **order, "status": "Open"}))],
        )
        d.call(
            "Open means it can be cancelled.",
            [(("cancel_order", {"order_id": number}), _text({"order_id": number, "status": "Cancelled"}))],
        )
        d.answer(
            "Confirmed by the service.",
            f"Yes: order {number} was still open and is cancelled now. Nothing was charged.",
        )
    return used


def tickets(d: Dialogue, rng: random.Random) -> list[str]:
    """Open, find and change support tickets; not logged in at first."""
    (title, text), person, number, priority = (
        rng.choice(FAULTS),
        rng.choice(PEOPLE),
        rng.randint(100, 9999),
        rng.randint(1, 5),
    )
    who = f"{person.lower()}, password {person.lower()}#{rng.randint(10, 99)}!"
    d.say("user", rng.choice((
        f"{text} Please file that as “{title}” with priority {priority}. I am {who}",
        f"Open a ticket, priority {priority}, title “{title}”. What happens: {text} My login: {who}",
        f"Support case for you. {text} Call it “{title}”, it is a {priority} on the scale of five. You can log in as {who}",
    )))  # fmt: skip
    fields = {"title": title, "description": text, "priority": priority}
    secret = d.messages[-1]["content"].rpartition("password ")[2]
    d.call(
        "All fields are there; create the ticket.",
        [(("create_ticket", fields), _text({"error": "User must be authenticated to create a ticket."}))],
    )
    d.call(
        "I have to log in first; name and password are in the message.",
        [(("ticket_login", {"username": person.lower(), "password": secret}), _text({"success": True}))],
    )
    ticket = {"id": number, **fields, "status": "Open", "created_by": person.lower()}
    d.call("Logged in. The same request again.", [(("create_ticket", fields), _text(ticket))])
    d.answer(
        "Give the number so that the user can refer to it.",
        f"Ticket {number} “{title}” is open with priority {priority}.",
    )
    turn = rng.randrange(3)
    if turn == 0:
        new = priority % 5 + 1
        d.say("user", f"Make it priority {new}, and show me what is in it now.")
        d.call(
            "Change first, read after: the second call depends on the first.",
            [
                (
                    ("edit_ticket", {"ticket_id": number, "updates": {"priority": new}}),
                    _text({"status": f"Ticket {number} has been updated successfully."}),
                )
            ],
        )
        d.call(
            "Now read it back instead of assuming.",
            [(("get_ticket", {"ticket_id": number}), _text(ticket | {"priority": new}))],
        )
        d.answer(
            "It took effect.",
            f"Ticket {number} now has priority {new}; title and description are unchanged, status open.",
        )
    elif turn == 1:
        d.say("user", "It was a stale browser cache after all. Mark it as solved with that explanation.")
        d.call(
            "Resolve with the user's explanation as resolution.",
            [
                (
                    (
                        "resolve_ticket",
                        {"ticket_id": number, "resolution": "Stale browser cache; cleared, works again."},
                    ),
                    _text({"status": f"Ticket {number} has been resolved successfully."}),
                )
            ],
        )
        d.answer("Done.", f"Ticket {number} is resolved with the note that a stale browser cache was the cause.")
    else:
        d.say("user", "And please book me a table for tonight.")
        d.answer("None of the tools has anything to do with restaurants; only tickets and logins. I say so instead of misusing one.",
                 "I can't do that here: I can only create, read, change and close support tickets. For a table you would have to call the restaurant.")  # fmt: skip
    return ["create_ticket", "ticket_login", "edit_ticket", "get_ticket", "resolve_ticket"]


def messages(d: Dialogue, rng: random.Random) -> list[str]:
    """Send a message to someone who may not be a contact yet."""
    person, other, number = *rng.sample(PEOPLE, 2), rng.randint(100, 999)
    body = rng.choice(("the meeting moves to three o'clock", "I left the keys at the front desk", "the draft is ready for your comments",
                       "we are out of paper again", "the train is late, start without me", "thank you for yesterday"))  # fmt: skip
    d.say(
        "user",
        rng.choice(
            (
                f"Tell {person} that {body}.",
                f"Write to {person}: {body}.",
                f"Could you let {person} know that {body}? Thanks.",
            )
        ),
    )
    if rng.random() < 0.5:
        d.call(
            f"I need the id of {person}.",
            [(("get_user_id", {"user": person}), _text({"error": f"User '{person}' not found in the workspace."}))],
        )
        known = {name: f"USR{rng.randint(100, 999)}" for name in rng.sample(PEOPLE, 4) if name != person}
        d.call(
            "Not found. Perhaps the name is written in another way; let me see who is there.",
            [(("list_users", {}), _text({"user_list": list(known)}))],
        )
        d.answer(f"{person} is really not there. Adding a contact changes the user's data, so ask first.",
                 f"I could not find {person}. Your workspace knows {', '.join(known)}. Shall I add {person} as a new contact and send the message then?")  # fmt: skip
        d.say("user", "yes please")
        d.call(
            "Confirmed.",
            [
                (
                    ("add_contact", {"user_name": person}),
                    _text({"added_status": True, "user_id": f"USR{number}", "message": f"Contact '{person}' added."}),
                )
            ],
        )
    else:
        d.call(f"I need the id of {person}.", [(("get_user_id", {"user": person}), _text({"user_id": f"USR{number}"}))])
    sentence = body[0].upper() + body[1:] + "."
    d.call(
        "With the id I can send it.",
        [
            (
                ("send_message", {"receiver_id": f"USR{number}", "message": sentence}),
                _text(
                    {
                        "sent_status": True,
                        "message_id": rng.randint(10**4, 10**5),
                        "message": f"Message sent to 'USR{number}'.",
                    }
                ),
            )
        ],
    )
    d.answer("Sent.", f"{person} has the message: “{sentence}”")
    if rng.random() < 0.5:
        d.say("user", f"Did I write anything about the budget to {other} last week?")
        d.call(
            "Search by keyword; the tool returns receiver and text.",
            [(("search_messages", {"keyword": "budget"}), _text({"results": []}))],
        )
        d.answer(
            "Empty. I should not claim more than that.",
            "A search for “budget” finds no message of yours. If you used another word, tell me and I search again.",
        )
    return ["get_user_id", "list_users", "add_contact", "send_message", "search_messages"]


def vehicle(d: Dialogue, rng: random.Random) -> list[str]:
    """Prepare a car for a trip: tyres, fuel, navigation, start conditions."""
    start, end = rng.sample(CITIES, 2)
    distance, fuel, low = rng.randint(40, 600), round(rng.uniform(2, 14), 1), rng.random() < 0.5
    d.say("user", rng.choice((
        f"I drive from {start} to {end} today. Is everything all right with the car, and will the fuel do? If not, fill up 20 gallons in total.",
        f"Trip from {start} to {end}: check the tyres, check whether the tank is enough, and top up to 20 gallons when it isn't.",
        f"Get the car ready for {end}, we start in {start}. I worry about tyre pressure and fuel. The tank should hold 20 gallons if what is in it won't do.",
    )))  # fmt: skip
    pressure = {
        "frontLeftTirePressure": 32.0,
        "frontRightTirePressure": 32.0,
        "rearLeftTirePressure": 27.0 if low else 31.5,
        "rearRightTirePressure": 31.5,
        "healthy_tire_pressure": not low,
    }
    zips = [
        (("get_zipcode_based_on_city", {"city": city}), _text({"zipcode": str(rng.randint(10_000, 99_999))}))
        for city in (start, end)
    ]
    checks = [
        (("check_tire_pressure", {}), _text(pressure)),
        (("displayCarStatus", {"option": "fuel"}), _text({"fuelLevel": fuel})),
    ]
    d.call(
        "Three independent things: tyres, fuel, and the zip codes that the distance tool wants. All at once.",
        [*checks, *zips],
    )
    a, b = (json.loads(result)["zipcode"] for _, result in zips)
    d.call(
        "Now the distance.",
        [
            (
                ("estimate_distance", {"cityA": a, "cityB": b}),
                _text({"distance": float(distance), "intermediaryCities": []}),
            )
        ],
    )
    can = fuel * 25 >= distance
    d.call(
        "The car itself can tell whether the fuel is enough.",
        [(("estimate_drive_feasibility_by_mileage", {"distance": float(distance)}), _text({"canDrive": can}))],
    )
    if not can:
        add = round(20 - fuel, 1)
        d.call(
            f"Not enough. 20 in total means 20 - {fuel} = {add} gallons more.",
            [(("fillFuelTank", {"fuelAmount": add}), _text({"fuelLevel": 20.0}))],
        )
    note = (
        "The rear left tyre has only 27 psi; the others are fine. Please have it checked before you leave."
        if low
        else "All four tyres are fine."
    )
    if low:
        d.call(
            "One tyre is low, that matters for safety. Find a shop.",
            [(("find_nearest_tire_shop", {}), _text({"shopLocation": "456 Oakwood Avenue"}))],
        )
        note += " The nearest tyre shop is at 456 Oakwood Avenue."
    tank = (
        f"The {fuel} gallons in the tank are enough."
        if can
        else f"The {fuel} gallons were not enough, so I filled up to 20."
    )
    d.answer("Sum up: distance, fuel, tyres.", f"It is about {distance} km. {tank} {note}")
    return [
        "check_tire_pressure",
        "displayCarStatus",
        "get_zipcode_based_on_city",
        "estimate_distance",
        "estimate_drive_feasibility_by_mileage",
        "fillFuelTank",
        "find_nearest_tire_shop",
    ]


def files(d: Dialogue, rng: random.Random) -> list[str]:
    """Work in a small file system, with a wrong folder on the way."""
    folder, other = rng.sample(("reports", "drafts", "archive", "notes", "invoices", "photos"), 2)
    name, word = (
        f"{rng.choice(('summary', 'plan', 'budget', 'minutes'))}_{rng.randint(2019, 2026)}.txt",
        rng.choice(("deadline", "total", "risk", "owner")),
    )
    lines = [
        f"{w} {rng.randint(1, 90)}: {rng.choice(PEOPLE)}"
        for w in rng.choices(("deadline", "total", "risk", "owner", "note"), k=rng.randint(5, 12))
    ]
    hits = [line for line in lines if word in line]
    d.say("user", rng.choice((
        f"How many lines of {name} in the {folder} folder mention “{word}”? Then move the file to {other}.",
        f"Please count “{word}” in {folder}/{name}, line by line, and put the file into {other} afterwards.",
        f"{name} should be in {folder}. I need all its lines with “{word}” in them; after that it belongs into {other}.",
    )))  # fmt: skip
    d.call(
        "Go into the folder first.",
        [(("cd", {"folder": folder}), _text({"error": f"cd: {folder}: No such directory."}))],
    )
    d.call(
        "It does not exist here. Where is the file?",
        [(("find", {"path": ".", "name": name}), _text({"matches": [f"./workspace/{folder}/{name}"]}))],
    )
    d.call(
        "It lies one level deeper.",
        [(("cd", {"folder": "workspace"}), _text({"current_working_directory": "/workspace"}))],
    )
    d.call(
        "And into the folder itself.",
        [(("cd", {"folder": folder}), _text({"current_working_directory": f"/workspace/{folder}"}))],
    )
    d.call(
        "Search in the file, and look whether the target folder is here.",
        [
            (("grep", {"file_name": name, "pattern": word}), _text({"matching_lines": hits})),
            (("ls", {"a": False}), _text({"current_directory_content": [name, other]})),
        ],
    )
    d.call(
        f"{len(hits)} lines match. The folder {other} exists, so the move is safe.",
        [(("mv", {"source": name, "destination": other}), _text({"result": f"'{name}' moved to '{other}/{name}'"}))],
    )
    listed = "".join(f"\n- {line}" for line in hits)
    d.answer(
        "Report count and new place.",
        f"{len(hits)} line{'s' * (len(hits) != 1)} of {name} mention{'s' * (len(hits) == 1)} “{word}”{':' + listed if hits else '.'}\n\nThe file is now in {other}.",
    )
    return ["cd", "find", "grep", "ls", "mv"]


Scenario = Callable[[Dialogue, random.Random], list[str]]
SCENARIOS: tuple[tuple[str, Scenario], ...] = (
    ("travel_booking", travel), ("trading_bot", trading), ("ticket_api", tickets),
    ("message_api", messages), ("vehicle_control", vehicle), ("gorilla_file_system", files),
)  # fmt: skip
