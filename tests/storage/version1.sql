-- The database of a node of schema 1 that was killed: events, sessions with messages on their way in both directions,
-- subscriptions, wills, retained messages, and the places of a processor and a bridge route. As sqlite3's .dump has it.
PRAGMA user_version=1;
BEGIN TRANSACTION;
CREATE TABLE cursors (name TEXT, position INTEGER, PRIMARY KEY (name));
INSERT INTO "cursors" VALUES('processor/daily',10);
INSERT INTO "cursors" VALUES('bridge/cloud/telemetry',10);
CREATE TABLE meta (name TEXT, value TEXT, PRIMARY KEY (name));
INSERT INTO "meta" VALUES('epoch','1732364587846990');
INSERT INTO "meta" VALUES('node','edge');
INSERT INTO "meta" VALUES('bridge/cloud/telemetry','1732364587846990 8');
INSERT INTO "meta" VALUES('reserved','65537');
CREATE TABLE processor_state (processor TEXT, partition INTEGER, key TEXT, value BLOB, PRIMARY KEY (processor, partition, key));
INSERT INTO "processor_state" VALUES('daily',1,'plant/oven/temperature',X'5B313733323332303030303030303030302C313733323430363430303030303030302C7B22636F756E74223A332C226D6178223A32337D5D');
CREATE TABLE retained (topic TEXT, seq INTEGER, ts INTEGER, payload BLOB, qos INTEGER, client TEXT, properties BLOB, expires INTEGER, PRIMARY KEY (topic));
INSERT INTO "retained" VALUES('plant/oven/state',7,1732364588177898,X'686F74',0,'gauge',X'',0);
INSERT INTO "retained" VALUES('plant/press/plan',8,1732364588177898,X'7B227061727473223A2031327D',1,'gauge',X'0300106170706C69636174696F6E2F6A736F6E',6027331883177898);
CREATE TABLE sessions (client_id TEXT, version INTEGER, expiry INTEGER, connected INTEGER, ended INTEGER, position INTEGER, inflight BLOB, received BLOB, PRIMARY KEY (client_id));
INSERT INTO "sessions" VALUES('press-7',5,4294967295,1,0,10,X'010002000000000000000201000300000000000000030100070000000000000008020005000000000000000502000600000000000000060300040000000000000004',X'');
INSERT INTO "sessions" VALUES('panel',4,4294967295,0,1732364587866586,0,X'',X'');
INSERT INTO "sessions" VALUES('zähler № 1',5,4294967295,0,1732364587867761,0,X'',X'');
INSERT INTO "sessions" VALUES('gauge',5,4294967295,1,0,9,X'',X'00060009');
CREATE TABLE subscriptions (client_id TEXT, filter TEXT, options INTEGER, identifier INTEGER, since INTEGER, PRIMARY KEY (client_id, filter));
INSERT INTO "subscriptions" VALUES('press-7','plant/+/temperature',1,7,0);
INSERT INTO "subscriptions" VALUES('press-7','plant/press/#',14,0,0);
INSERT INTO "subscriptions" VALUES('panel','plant/#',1,0,0);
INSERT INTO "subscriptions" VALUES('panel','alarm/#',2,0,0);
INSERT INTO "subscriptions" VALUES('zähler № 1','clock',0,0,0);
CREATE TABLE tail (seq INTEGER NOT NULL, ts INTEGER NOT NULL, topic INTEGER NOT NULL, flags INTEGER NOT NULL, client TEXT NOT NULL, properties BLOB NOT NULL, payload BLOB NOT NULL, expires INTEGER NOT NULL, PRIMARY KEY (seq));
INSERT INTO "tail" VALUES(1,1732364587868111,1,17,'gauge',X'',X'3231',0);
INSERT INTO "tail" VALUES(2,1732364587869589,1,17,'gauge',X'',X'3232',0);
INSERT INTO "tail" VALUES(3,1732364587870291,1,17,'gauge',X'',X'3233',0);
INSERT INTO "tail" VALUES(4,1732364587870926,2,18,'gauge',X'2600046C696E65000134',X'006F726465722034FF',0);
INSERT INTO "tail" VALUES(5,1732364587874050,2,18,'gauge',X'2600046C696E65000134',X'006F726465722035FF',0);
INSERT INTO "tail" VALUES(6,1732364587875475,2,18,'gauge',X'2600046C696E65000134',X'006F726465722036FF',0);
INSERT INTO "tail" VALUES(7,1732364588177898,3,12,'gauge',X'',X'686F74',0);
INSERT INTO "tail" VALUES(8,1732364588177898,4,21,'gauge',X'0300106170706C69636174696F6E2F6A736F6E',X'7B227061727473223A2031327D',6027331883177898);
INSERT INTO "tail" VALUES(9,1732364588180630,5,18,'gauge',X'',X'746F6F20686F74',0);
INSERT INTO "tail" VALUES(10,1732364588182251,5,18,'gauge',X'',X'697427732066696E6520616761696E3B20E29C93',0);
CREATE TABLE topics (id INTEGER, name TEXT NOT NULL UNIQUE, PRIMARY KEY (id));
INSERT INTO "topics" VALUES(1,'plant/oven/temperature');
INSERT INTO "topics" VALUES(2,'plant/press/order');
INSERT INTO "topics" VALUES(3,'plant/oven/state');
INSERT INTO "topics" VALUES(4,'plant/press/plan');
INSERT INTO "topics" VALUES(5,'alarm/oven');
CREATE TABLE wills (client_id TEXT, due INTEGER, delay INTEGER, topic TEXT, payload BLOB, qos INTEGER, retain INTEGER, properties BLOB, PRIMARY KEY (client_id));
INSERT INTO "wills" VALUES('press-7',0,2147483647,'plant/press/state',X'676F6E65',1,1,X'187FFFFFFF03000A746578742F706C61696E');
INSERT INTO "wills" VALUES('zähler № 1',3879848234867761,2147483647,'plant/meter/state',X'00FF',0,0,X'187FFFFFFF');
CREATE VIEW events AS
        SELECT seq, strftime('%Y-%m-%dT%H:%M:%f', ts / 1e6, 'unixepoch') || 'Z' AS time, name AS topic,
            flags & 3 AS qos, flags >> 2 & 1 AS retain, client, payload, properties, ts, expires
        FROM tail JOIN topics ON topics.id = tail.topic;
COMMIT;
